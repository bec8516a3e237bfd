"""A way to the API server that can be severed, as a network can: nothing arrives, and nobody is told.

What was on its way then is lost, as TCP gives up what is not acknowledged for long.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml

_CHUNK = 65536


class Link:
    """Forwards TCP connections. Those that carry something while it is severed hang, and break when it is mended."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        address = urlsplit(cluster["server"])
        self._target = (address.hostname, address.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._whole = threading.Event()
        self._whole.set()
        self._is_closed = False
        self._sockets: list[socket.socket] = [self._listener]
        cluster["server"] = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        threading.Thread(target=self._accept, daemon=True).start()

    def sever(self) -> None:
        self._whole.clear()

    def mend(self) -> None:
        self._whole.set()

    def close(self) -> None:
        self._is_closed = True
        self._whole.set()
        for each in self._sockets:
            # A thread that waits in accept or recv is woken by this alone.
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while not self._is_closed:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                self._sockets += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(_CHUNK):
                if not self._whole.is_set():
                    self._whole.wait()
                    break
                sink.sendall(chunk)
            self._whole.wait()
            for end in (source, sink):
                end.shutdown(socket.SHUT_RDWR)
