"""Composition root of the runtime: settings, logs, engine process, two HTTP servers, signals, exit code.

Probes answer from the first second; the API answers 503 until a first token has been computed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Coroutine, Generator
from os import environ
from typing import TYPE_CHECKING

import uvicorn
import uvloop
from prometheus_client import CollectorRegistry

from dedicate_runtime.api.app import create_app
from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.management import create_management_app
from dedicate_runtime.api.readiness import Readiness
from dedicate_runtime.api.served_model import load_served_model
from dedicate_runtime.engine.client import EngineClient, start_engine
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.logs import configure_logging
from dedicate_runtime.metrics import Metrics
from dedicate_runtime.settings import AuthMode, Settings, failure_file_of, parse_settings

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.types import ASGIApp

    from dedicate_runtime.core.request import EngineStats

_log = logging.getLogger("dedicate_runtime")
_CLOSE_CONNECTIONS_S = 5
"""Arbitrary: after the drain nothing runs, so connections have only their last bytes to send."""
_WATCH_INTERVAL_S = 0.5
_BACKLOG = 2048


def main() -> int:
    """Runs the runtime until a signal ends it; gives the process's exit code. Source: docs/contract.md."""
    arguments = sys.argv[1:]
    try:
        settings = parse_settings(arguments, environ)
        configure_logging(settings.log_level.value)
        return _run(settings)
    except StartError as error:
        _tell_failure(error, failure_file_of(arguments, environ))
        return int(error.exit_code)


def _run(settings: Settings) -> int:
    """Runs the event loop that both servers share."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_Runtime(settings).run())


class _Server(uvicorn.Server):
    """A server that leaves signals to the composition root."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Runtime:
    """One run, from nothing to the exit code."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stopping = asyncio.Event()
        self._metrics = Metrics(CollectorRegistry())

    async def run(self) -> int:
        started_at = time.monotonic()
        settings = self._settings
        keys = None
        if settings.auth is AuthMode.API_KEY and settings.api_keys_dir is not None:
            keys = KeyRing(settings.api_keys_dir)
        with (
            _listen(settings.host, settings.management_port, "--management-port") as probes,
            _listen(settings.host, settings.port, "--port") as public,
        ):
            self._watch_signals()
            engine = await start_engine(settings.engine_config())
            try:
                readiness = Readiness(engine)
                self._metrics.watch_engine(lambda: _stats(engine))
                app = create_app(
                    engine, readiness=readiness, keys=keys, metrics=self._metrics, dedicate=settings.dedicate
                )
                management = create_management_app(readiness, self._metrics.registry)
                async with _serve(management, probes), _serve(app, public):
                    _log.info(
                        "listening",
                        extra={"port": public.getsockname()[1], "management_port": probes.getsockname()[1]},
                    )
                    return await self._live(engine, readiness, started_at)
            finally:
                await engine.aclose()

    async def _live(self, engine: EngineClient, readiness: Readiness, started_at: float) -> int:
        """Loads, serves, and drains when asked to; ends early when the engine does."""
        if await self._unless_stopped(self._load(engine, readiness, started_at)):
            return 0
        if not await self._unless_stopped(_until_dead(engine)):
            _log.error("the engine process has ended")
            return int(ExitCode.INTERNAL_ERROR)
        readiness.start_draining()
        _log.info("draining", extra={"drain_seconds": self._settings.drain_seconds})
        await engine.drain(self._settings.drain_seconds)
        _log.info("drained")
        return 0

    async def _load(self, engine: EngineClient, readiness: Readiness, started_at: float) -> None:
        await engine.wait_ready()
        served = await asyncio.to_thread(load_served_model, engine.model, self._settings)
        readiness.start_serving(served)
        load_s = time.monotonic() - started_at
        self._metrics.observe_model(served.name, served.info, load_s)
        _log.info(
            "ready",
            extra={
                "model": served.name,
                "device": served.info.device,
                "dtype": served.info.dtype,
                "max_model_len": served.info.max_model_len,
                "end_ids": sorted(served.end_ids),
                "load_s": round(load_s, 3),
            },
        )

    async def _unless_stopped(self, work: Coroutine[None, None, None]) -> bool:
        """Runs `work` to its end, or gives it up and says so when a signal has asked to stop."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return not working.done()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    def _watch_signals(self) -> None:
        """Lets the first signal ask for a drain; a second one ends the process at once."""
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            _log.info("stopping", extra={"signal": number.name})
            self._stopping.set()
            for one in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(one)
                signal.signal(one, signal.SIG_DFL)

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop, number)


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
            timeout_graceful_shutdown=_CLOSE_CONNECTIONS_S,
        )
    )
    serving = asyncio.ensure_future(server.serve([listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _listen(host: str, port: int, option: str) -> socket.socket:
    """Opens a listening socket.

    Raises:
        StartError: the port is taken, or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        sentence = f"{option} {port} on {host} cannot be listened on: {error.strerror}."
        raise StartError(ExitCode.INVALID_ARGUMENTS, sentence) from error


async def _until_dead(engine: EngineClient) -> None:
    while engine.state is not EngineState.DEAD:  # noqa: ASYNC110 - the engine is another process, and tells no event
        await asyncio.sleep(_WATCH_INTERVAL_S)


def _stats(engine: EngineClient) -> EngineStats | None:
    return engine.stats if engine.state is EngineState.READY else None


def _tell_failure(error: StartError, failure_file: Path | None) -> None:
    """Writes the one sentence where people and the operator look for it."""
    sys.stderr.write(f"{error.sentence}\n")
    if failure_file is None:
        return
    try:
        failure_file.write_text(f"{error.sentence}\n", encoding="utf-8")
    except OSError as problem:
        sys.stderr.write(f"--failure-file cannot be written: {problem}\n")


if __name__ == "__main__":
    sys.exit(main())
