"""The page on the management port that says how far a download has come, while there is no runtime to ask yet."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dedicate_runtime.download.progress import Progress

_logger = logging.getLogger(__name__)

PATH = "/progress"
_CLIENT_S = 5.0
"""What a client may take for its request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], progress: Progress) -> None:
        super().__init__(address, _Handler)
        self.progress = progress


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_S
    server: _Server

    def do_GET(self) -> None:
        if self.path != PATH:
            self.send_error(404)
            return
        body = json.dumps(self.server.progress.look().to_json()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        _logger.debug(format, *args)


@contextlib.contextmanager
def serve_progress(progress: Progress, host: str, port: int) -> Iterator[int]:
    """Serve the page meanwhile; gives the port.

    Raises:
        StartError: INVALID_ARGUMENTS, the port cannot be listened on.
    """
    try:
        server = _Server((host, port), progress)
    except OSError as error:
        sentence = f"--management-port {port} on {host} cannot be listened on: {error.strerror}."
        raise StartError(ExitCode.INVALID_ARGUMENTS, sentence) from error
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
