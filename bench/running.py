"""The life of one server that is measured: started on free ports, ready, measured, ended with all its children."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.load import Target, build_body
from bench.machine import find_process_tree, measure_anonymous_bytes, measure_pss_bytes
from bench.servers import KEY, Server, Start
from bench.stream import Address

_HOST = "127.0.0.1"
_START_TIMEOUT_S = 300  # arbitrary: the slowest peer compiles for two minutes and a half
_STOP_TIMEOUT_S = 20
_POLL_S = 0.05
_OTHERS_SETTINGS = ("GOMP_", "OMP_", "MKL_", "KMP_")
"""Prefixes of variables that change how the threads of any server behave: each gets its own defaults."""


class ServerFailedError(Exception):
    """A server that could not be started, in a sentence with the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server that answers."""

    target: Target
    management_url: str
    pid: int
    first_token_s: float
    """From the start of the process to the first token that a client had of it."""
    command: list[str] = field(default_factory=list)

    def measure_pss_bytes(self) -> int:
        """Adds up the memory of all its processes now."""
        return measure_pss_bytes(find_process_tree(self.pid))

    def measure_anonymous_bytes(self) -> int:
        """What the server's processes have taken for themselves."""
        return measure_anonymous_bytes(find_process_tree(self.pid))


def free_port() -> int:
    """Asks the system for a port that is free now."""
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(
    server: Server, model: Path, scratch: Path, *, slots: int, context_tokens: int | None = None
) -> Iterator[Running]:
    """Runs one server for as long as the block does.

    Raises:
        EnvironmentUnavailableError: it cannot be installed here.
        ServerFailedError: it ended early or was not ready in time.
    """
    start = Start(
        model=model,
        port=free_port(),
        management_port=free_port(),
        scratch=scratch,
        slots=slots,
        context_tokens=context_tokens,
    )
    command = server.command(start)
    target = Target(
        address=Address(host=_HOST, port=start.port, path=server.path, api_key=KEY),
        model=server.model_name(model),
        adapt=server.adapt,
    )
    log = scratch / "server.log"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OTHERS_SETTINGS)}
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**inherited, "HF_HUB_OFFLINE": "1", **server.environment},
            cwd=scratch,
            start_new_session=True,
        )
        try:
            _wait_for_token(process, target, log)
            yield Running(
                target=target,
                management_url=f"http://{_HOST}:{start.management_port}",
                pid=process.pid,
                first_token_s=time.perf_counter() - began,
                command=command,
            )
        finally:
            _end(process)


def _wait_for_token(process: subprocess.Popen[bytes], target: Target, log: Path) -> None:
    """Asks for one token until one comes: readiness that means the same for every server."""
    body = build_body(target, "Hi", max_tokens=1, seed=0, sampling={})
    address = target.address
    url = f"http://{address.host}:{address.port}{address.path}/chat/completions"
    deadline = time.monotonic() + _START_TIMEOUT_S
    answer = ""
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ServerFailedError(f"ended with exit code {process.returncode}: {_end_of(log)}")
        with contextlib.suppress(httpx.TransportError):
            headers = {"Authorization": f"Bearer {address.api_key}"}
            response = httpx.post(url, json=body, headers=headers, timeout=60)
            if response.is_success:
                return
            answer = f"{response.status_code} {response.text[:200]}"
        time.sleep(_POLL_S)
    raise ServerFailedError(f"no token within {_START_TIMEOUT_S} s; last answer: {answer}; {_end_of(log)}")


def _end_of(log: Path) -> str:
    return " ".join(log.read_text(errors="replace").split())[-400:]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the server; what is left of its session after a while is killed."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
