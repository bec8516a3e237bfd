"""Composition root of the runtime: settings, logs, sockets, signals, engine process, exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Protocol

import uvloop

from dedicate_runtime.engine.supervisor import start_supervised_engine
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.logs import BackgroundHandler, configure_logging
from dedicate_runtime.settings import Settings, failure_file_of, parse_settings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.engine.supervisor import EngineSupervisor

_log = logging.getLogger("dedicate_runtime")
_BACKLOG = 2048


class EngineStarter(Protocol):
    """Starts the first engine process and returns while it loads; the benchmarks have one of their own."""

    async def __call__(self, config: EngineConfig, *, stall_s: float) -> EngineSupervisor: ...


def main() -> int:
    """Runs the runtime until a signal ends it; gives the process's exit code. Source: docs/contract.md."""
    return run(sys.argv[1:], start_supervised_engine)


def run(arguments: Sequence[str], start_engine: EngineStarter) -> int:
    """Runs the runtime with these options before an engine that `start_engine` starts."""
    try:
        settings = parse_settings(arguments, os.environ)
        log = configure_logging(settings.log_level.value)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, log, start_engine))
    except StartError as error:
        _tell_failure(error, failure_file_of(arguments, os.environ))
        return int(error.exit_code)
    return 0


async def _run(settings: Settings, log: BackgroundHandler, start_engine: EngineStarter) -> None:
    started_at = time.monotonic()
    stopping = _watch_signals()
    with (
        _listen(settings.host, settings.port, "--port") as public,
        _listen(settings.host, settings.management_port, "--management-port") as management,
    ):
        engine = await start_engine(settings.engine_config(), stall_s=settings.stall_seconds)
        try:
            # Imported only now: the web framework takes a second, in which the engine process loads torch.
            from dedicate_runtime.serving import Listeners, serve_engine  # noqa: PLC0415

            listeners = Listeners(public=public, management=management)
            await serve_engine(engine, settings, listeners, log=log, stopping=stopping, started_at=started_at)
        finally:
            await engine.aclose()


def _watch_signals() -> asyncio.Event:
    """Lets the first signal ask for a drain, by the event.

    A person's second Ctrl-C ends the process at once. A second SIGTERM does not: whoever manages processes may send it
    again while it waits, and that must not cut answers short.
    """
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()

    def stop(number: signal.Signals) -> None:
        if stopping.is_set():
            return
        _log.info("stopping", extra={"signal": number.name})
        stopping.set()
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    return stopping


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


def _tell_failure(error: StartError, failure_file: Path | None) -> None:
    """Writes the one sentence where people and the operator look for it, after the log."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.write(f"{error.sentence}\n")
    if failure_file is None:
        return
    try:
        failure_file.write_text(f"{error.sentence}\n", encoding="utf-8")
    except OSError as problem:
        sys.stderr.write(f"--failure-file cannot be written: {problem}\n")


if __name__ == "__main__":
    sys.exit(main())
