"""An HTTP server on a socket that is open already: its connections, their bounds, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from typing import TYPE_CHECKING

import uvicorn

from dedicate_runtime.api.http_protocol import ConnectionLimits, bounded_protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from dedicate_runtime.metrics import Metrics

_log = logging.getLogger(__name__)
_CLOSE_CONNECTIONS_S = 6
"""After the drain nothing runs, so connections have only their last bytes to send. Of the 15 s that the pod is given
beyond the drain, the last traces and logs and the engine's end may take the rest."""
_KEEP_ALIVE_S = 75
"""Longer than the 60 s for which proxies reuse an idle connection, so that they never pick one that is being closed."""

_PROBE_CONNECTIONS = 256
"""Arbitrary: kubelet and Prometheus need a handful."""
_OTHER_FILES = 256
"""Arbitrary: open files that are no connections of clients."""


class Server(uvicorn.Server):
    """A server that leaves signals to the composition root."""

    task: asyncio.Future[None]

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    @property
    def has_connections(self) -> bool:
        return bool(self.server_state.connections)

    def close_after_answers(self) -> None:
        """Has every answer to a request that comes from now on tell its client to use another connection."""
        farewell = (b"connection", b"close")
        # The server makes the one of the other, and the date, once a second.
        self.config.encoded_headers = [*self.config.encoded_headers, farewell]
        self.server_state.default_headers = [*self.server_state.default_headers, farewell]


def share_connections() -> tuple[ConnectionLimits, ConnectionLimits]:
    """Lets this process open as many files as it may, and gives what that leaves for clients and for probes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    public, probing = ConnectionLimits(), ConnectionLimits(max_connections=_PROBE_CONNECTIONS)
    needed = public.num_files + probing.num_files + _OTHER_FILES
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < needed:
        _log.warning("few open files are allowed: fewer connections are taken", extra={"limit": allowed})
        public = public.within(allowed - probing.num_files - _OTHER_FILES)
    return public, probing


@contextlib.asynccontextmanager
async def run_server(
    app: ASGIApp, listener: socket.socket, limits: ConnectionLimits, metrics: Metrics
) -> AsyncGenerator[Server, None]:
    """Serves an application on a socket for as long as the block runs, then lets its connections end.

    Gives the server; its task ends before the block does only by a fault.
    """
    server = Server(
        uvicorn.Config(
            app,
            http=bounded_protocol(limits, on_refusal=metrics.observe_refused_connection),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        )
    )
    server.task = asyncio.ensure_future(server.serve([listener]))
    try:
        yield server
    finally:
        server.should_exit = True
        await asyncio.wait([server.task])
        if (error := server.task.exception()) is not None:
            _log.error("a server failed", exc_info=error)


def bound_unread(listener: socket.socket, seconds: float) -> None:
    """Has the kernel drop connections of `listener` whose peer takes nothing for so long, and their buffers with them.

    A server can only close them, which waits for what is unsent. Source: tcp(7), which leaves out that accepted sockets
    inherit the option and that a window of zero counts, too.
    """
    if sys.platform == "linux":
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * seconds))


def read_port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])
