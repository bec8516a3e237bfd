"""The life of a runtime whose engine process has been started: load, serve, replace an engine that is lost, drain.

Probes answer from the first second; the API answers 503 until a first token has been computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NoReturn

from prometheus_client import CollectorRegistry

from dedicate_runtime.api.app import create_app
from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.limits import Limiter, LimitPolicy
from dedicate_runtime.api.limits_file import LimitsError, LimitsFile
from dedicate_runtime.api.management import create_management_app
from dedicate_runtime.api.mounted_files import MountedFiles
from dedicate_runtime.api.readiness import Readiness
from dedicate_runtime.api.served_model import load_served_model
from dedicate_runtime.api.sse import STALLED_READER_S, DirectSend
from dedicate_runtime.api.trace_context import wants_traces
from dedicate_runtime.api.usage import UsageBook
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.metrics import Metrics
from dedicate_runtime.servers import Server, bound_unread, read_port, run_server, share_connections
from dedicate_runtime.settings import AuthMode, Settings

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel
    from dedicate_runtime.api.tracing import Tracer
    from dedicate_runtime.core.request import EngineStats
    from dedicate_runtime.engine.supervisor import EngineSupervisor
    from dedicate_runtime.logs import BackgroundHandler

_log = logging.getLogger(__name__)
_GC_THRESHOLD = 50_000
"""Objects made over objects freed before the collector looks at the young ones. With the usual 700 it looked several
times in each step's frame, and now and then at all objects of all streams: a quarter of the time at 1,000."""
_LAST_CALLS_S = 5.0
"""Longer than a busy client pauses between two requests. Taken from the drain, and at most a half of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listeners:
    """The two sockets, open before anything slow begins, so that a taken port is told at once."""

    public: socket.socket
    management: socket.socket


async def serve_engine(
    engine: EngineSupervisor,
    settings: Settings,
    listeners: Listeners,
    *,
    log: BackgroundHandler,
    stopping: asyncio.Event,
    started_at: float,
) -> None:
    """Serves until `stopping` is set and everything is drained.

    Raises:
        StartError: the model cannot be served, or no longer.
    """
    keys = None
    if settings.auth is AuthMode.API_KEY and settings.api_keys_dir is not None:
        keys = KeyRing(settings.api_keys_dir)
    limits_file = LimitsFile(settings.limits_file) if settings.limits_file is not None else None
    limiter = Limiter(_read_limits(limits_file)) if limits_file is not None else None
    usage = UsageBook(since=int(time.time()))
    metrics = Metrics(CollectorRegistry())
    metrics.watch_engine(lambda: _stats(engine))
    metrics.watch_queue(lambda: engine.expected_wait_s)
    metrics.watch_log(lambda: log.num_dropped)
    engine.tell(metrics)
    readiness = Readiness(engine, stall_s=settings.stall_seconds)
    bound_unread(listeners.public, STALLED_READER_S)
    files = MountedFiles(keys=keys, limits_file=limits_file, limiter=limiter, usage=usage, metrics=metrics)
    management = create_management_app(readiness, metrics.registry)
    public, probing = share_connections()
    if settings.log_prompts:
        _log.warning("prompts and answers are written to the log", extra={"option": "--log-prompts"})
    async with contextlib.AsyncExitStack() as stack:
        app = create_app(
            engine,
            readiness=readiness,
            keys=keys,
            limiter=limiter,
            usage=usage,
            metrics=metrics,
            dedicate=settings.dedicate,
            request_timeout_s=settings.request_timeout_seconds,
            tracer=await stack.enter_async_context(_tracing(settings, metrics)),
            logs_prompts=settings.log_prompts,
        )
        await stack.enter_async_context(_in_background(files.watch()))
        probes = await stack.enter_async_context(run_server(management, listeners.management, probing, metrics))
        api = await stack.enter_async_context(run_server(DirectSend(app), listeners.public, public, metrics))
        ports = {"port": read_port(listeners.public), "management_port": read_port(listeners.management)}
        _log.info("listening", extra=ports)
        await _until(stopping, _live(engine, settings, readiness, metrics, started_at), servers=(probes.task, api.task))
        if not readiness.is_started:
            return
        readiness.start_leaving()
        taken_s = await _take_last_calls(api, limit_s=min(_LAST_CALLS_S, settings.drain_seconds / 2))
        readiness.start_draining()
        _log.info("draining", extra={"drain_seconds": settings.drain_seconds})
        await engine.drain(max(0.0, settings.drain_seconds - taken_s))
        _log.info("drained")


async def _take_last_calls(server: Server, *, limit_s: float) -> float:
    """Goes on answering, each answer the last of its connection, while there are connections; gives the time taken.

    Routers have stopped by now, but a client within the cluster that keeps its connection knows nothing of them: its
    next request comes here. It is answered, and the one after it goes to another pod.
    """
    server.close_after_answers()
    began = time.monotonic()
    while server.has_connections and time.monotonic() - began < limit_s:  # noqa: ASYNC110
        await asyncio.sleep(0.05)  # the server tells nobody when its last connection goes
    return time.monotonic() - began


def _read_limits(file: LimitsFile) -> LimitPolicy:
    """Reads the limits for the first time.

    Raises:
        StartError: they cannot be used; the sentence names the field.
    """
    try:
        return file.read_if_changed() or LimitPolicy()
    except LimitsError as error:
        raise StartError(ExitCode.INVALID_ARGUMENTS, str(error)) from error


async def _live(
    engine: EngineSupervisor, settings: Settings, readiness: Readiness, metrics: Metrics, started_at: float
) -> NoReturn:
    """Opens the API at the engine's first token, and again after each loss of the engine."""
    await engine.wait_ready()
    served = await asyncio.to_thread(load_served_model, engine.model, settings)
    _calm_collector()
    while True:
        readiness.start_serving(served)
        load_s = time.monotonic() - started_at
        metrics.observe_model(served.name, served.info, load_s)
        _log.info("ready", extra=_describe(served) | {"load_s": round(load_s, 3)})
        await engine.wait_lost()
        started_at = time.monotonic()
        await engine.restart()
        # The new process found the memory as it is now: its cache, and the context with it, may be another.
        served = replace(served, info=engine.model)


def _calm_collector() -> None:
    """Has the garbage collector leave alone what is there for good, and look less often at the rest."""
    gc.collect()
    gc.freeze()
    _, *older = gc.get_threshold()
    gc.set_threshold(_GC_THRESHOLD, *older)


def _describe(served: ServedModel) -> dict[str, object]:
    return {
        "model": served.name,
        "device": served.info.device,
        "dtype": served.info.dtype,
        "attention_backend": served.info.attention_backend,
        "max_model_len": served.info.max_model_len,
        "end_ids": sorted(served.end_ids),
    }


async def _until(
    stopping: asyncio.Event, life: Coroutine[None, None, NoReturn], *, servers: Sequence[asyncio.Future[None]]
) -> None:
    """Runs `life` until the event is set.

    Raises:
        StartError: `life` came to an end, or a server did.
    """
    living = asyncio.ensure_future(life)
    asked = asyncio.ensure_future(stopping.wait())
    try:
        tasks: list[asyncio.Future[Any]] = [living, asked, *servers]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if living.done():
            living.result()
        for server in servers:
            if server.done():
                raise StartError(ExitCode.INTERNAL_ERROR, "An HTTP server ended while it was serving.")
    finally:
        for task in (living, asked):
            task.cancel()
        await asyncio.gather(living, asked, return_exceptions=True)


@contextlib.asynccontextmanager
async def _tracing(settings: Settings, metrics: Metrics) -> AsyncGenerator[Tracer | None, None]:
    """Gives who traces requests, if the environment names a collector, and has the last spans sent at the end.

    Raises:
        StartError: the environment has a value for OpenTelemetry that cannot be used.
    """
    if not wants_traces(os.environ):
        yield None
        return
    # Imported only here: it takes memory and a quarter of a second, and most run without.
    from dedicate_runtime.api.trace_export import start_trace_export  # noqa: PLC0415

    export = start_trace_export(settings, os.environ)
    metrics.watch_traces(lambda: export.num_ended, lambda: export.num_exported)
    try:
        yield export.tracer
    finally:
        await export.aclose()


@contextlib.asynccontextmanager
async def _in_background(work: Coroutine[None, None, NoReturn]) -> AsyncGenerator[None, None]:
    """Runs endless work for as long as the block runs."""
    task = asyncio.ensure_future(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _stats(engine: EngineSupervisor) -> EngineStats | None:
    return engine.stats if engine.state is EngineState.READY else None
