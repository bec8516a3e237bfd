"""The life of a runtime whose engine process has been started: load, serve, drain.

Probes answer from the first second; the API answers 503 until a first token has been computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from prometheus_client import CollectorRegistry

from dedicate_runtime.api.app import create_app
from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.management import create_management_app
from dedicate_runtime.api.readiness import Readiness
from dedicate_runtime.api.served_model import load_served_model
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.metrics import Metrics
from dedicate_runtime.settings import AuthMode, Settings

if TYPE_CHECKING:
    import socket

    from starlette.types import ASGIApp

    from dedicate_runtime.core.request import EngineStats
    from dedicate_runtime.engine.client import EngineClient

_log = logging.getLogger(__name__)
_CLOSE_CONNECTIONS_S = 5
"""Arbitrary: after the drain nothing runs, so connections have only their last bytes to send."""
_KEEP_ALIVE_S = 75
"""Longer than the 60 s for which proxies reuse an idle connection, so that they never pick one that is being closed."""
_WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The two sockets, open before anything slow begins, so that a taken port is told at once."""

    public: socket.socket
    management: socket.socket


async def serve_engine(
    engine: EngineClient, settings: Settings, listeners: Listeners, *, stopping: asyncio.Event, started_at: float
) -> None:
    """Serves until `stopping` is set and everything is drained.

    Raises:
        StartError: the model cannot be served, or no longer.
    """
    keys = None
    if settings.auth is AuthMode.API_KEY and settings.api_keys_dir is not None:
        keys = KeyRing(settings.api_keys_dir)
    metrics = Metrics(CollectorRegistry())
    metrics.watch_engine(lambda: _stats(engine))
    readiness = Readiness(engine)
    app = create_app(engine, readiness=readiness, keys=keys, metrics=metrics, dedicate=settings.dedicate)
    management = create_management_app(readiness, metrics.registry)
    async with _serve(management, listeners.management), _serve(app, listeners.public):
        ports = {"port": _port(listeners.public), "management_port": _port(listeners.management)}
        _log.info("listening", extra=ports)
        loading = _load(engine, settings, readiness, metrics, started_at)
        if not await _completes(loading, unless=stopping):
            return
        if await _completes(_until_dead(engine), unless=stopping):
            raise StartError(ExitCode.INTERNAL_ERROR, "The engine process ended while it was serving.")
        readiness.start_draining()
        _log.info("draining", extra={"drain_seconds": settings.drain_seconds})
        await engine.drain(settings.drain_seconds)
        _log.info("drained")


async def _load(
    engine: EngineClient, settings: Settings, readiness: Readiness, metrics: Metrics, started_at: float
) -> None:
    """Waits for the engine's first token, then opens the API."""
    await engine.wait_ready()
    served = await asyncio.to_thread(load_served_model, engine.model, settings)
    readiness.start_serving(served)
    load_s = time.monotonic() - started_at
    metrics.observe_model(served.name, served.info, load_s)
    _log.info(
        "ready",
        extra={
            "model": served.name,
            "device": served.info.device,
            "dtype": served.info.dtype,
            "attention_backend": served.info.attention_backend,
            "max_model_len": served.info.max_model_len,
            "end_ids": sorted(served.end_ids),
            "load_s": round(load_s, 3),
        },
    )


async def _completes(work: Coroutine[None, None, None], *, unless: asyncio.Event) -> bool:
    """Runs `work`; says whether it came to its end, or was given up because the event was set."""
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(unless.wait())
    try:
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            working.result()
        return working.done()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)


async def _until_dead(engine: EngineClient) -> None:
    while engine.state is not EngineState.DEAD:  # noqa: ASYNC110 - the interface has a state to look at, no event
        await asyncio.sleep(_WATCH_INTERVAL_S)


class _Server(uvicorn.Server):
    """A server that leaves signals to the composition root."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@contextlib.asynccontextmanager
async def _serve(app: ASGIApp, listener: socket.socket) -> AsyncGenerator[None, None]:
    """Serves an application on a socket for as long as the block runs, then lets its connections end."""
    server = _Server(
        uvicorn.Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        )
    )
    serving = asyncio.ensure_future(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


def _stats(engine: EngineClient) -> EngineStats | None:
    return engine.stats if engine.state is EngineState.READY else None
