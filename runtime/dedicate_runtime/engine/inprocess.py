"""An engine in a thread of this process, behind the same client and the same frames: for tests."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

from dedicate_runtime.core.faults import DeviceLostError
from dedicate_runtime.engine.client import EngineClient
from dedicate_runtime.engine.process import Connection, serve

if TYPE_CHECKING:
    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.engine.process import EngineBuilder


async def start_engine_in_thread(config: EngineConfig, build: EngineBuilder) -> EngineClient:
    """Like `client.start_engine`, with the engine that `build` makes; the thread ends when the client is closed."""
    ours, theirs = socket.socketpair()

    def run() -> None:
        with theirs, contextlib.suppress(OSError):
            with contextlib.suppress(DeviceLostError):
                serve(Connection(theirs), build, on_end=lambda: None)
            # Closing alone does not wake the reader, which holds the socket open.
            theirs.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=run, name="engine", daemon=True).start()
    return await EngineClient.connect(ours, config)
