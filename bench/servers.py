"""The servers that are compared: how each is started on a free port with the same weights, and when it is ready."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench.load import Target

_KEY = "bench-key"
_START_TIMEOUT_S = 180  # arbitrary: the slowest peer compiles for two minutes


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One way to serve the model. `command` gets the model's folder, a port and a scratch folder."""

    name: str
    command: Callable[[Path, int, Path], list[str]]
    path: str
    model: Callable[[Path], str]
    extra_body: dict[str, object] = field(default_factory=dict)


def _dedicate(model: Path, port: int, scratch: Path) -> list[str]:
    keys = scratch / "keys"
    keys.mkdir()
    (keys / "bench").write_text(_KEY)
    command = [
        sys.executable,
        "-m",
        "dedicate_runtime",
        "--model",
        str(model),
        "--dedicate",
        "bench",
        "--device",
        "cpu",
    ]
    ports = ["--host", "127.0.0.1", "--port", str(port), "--management-port", str(free_port())]
    return [*command, *ports, "--api-keys-dir", str(keys), "--log-level", "warning"]


def _transformers(*options: str) -> Callable[[Path, int, Path], list[str]]:
    def command(model: Path, port: int, _scratch: Path) -> list[str]:
        transformers = str(Path(sys.prefix) / "bin" / "transformers")
        where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        return [transformers, "serve", *where, "--log-level", "error", *options, str(model)]

    return command


SERVERS = {
    server.name: server
    for server in (
        Server(
            name="dedicate",
            command=_dedicate,
            path="/bench/v1",
            model=lambda folder: folder.name,
            extra_body={"ignore_eos": True},
        ),
        Server(name="transformers-serve", command=_transformers(), path="/v1", model=str),
        Server(
            name="transformers-serve-cb",
            command=_transformers("--continuous-batching"),
            path="/v1",
            model=str,
        ),
    )
}


def free_port() -> int:
    """Ask the system for a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def started(server: Server, model: Path, scratch: Path) -> Iterator[tuple[Target, float]]:
    """Run one server; give where to send requests and the seconds until it answered the first one.

    Raises:
        RuntimeError: it ended early or was not ready in time; names the log.
    """
    port, log = free_port(), scratch / f"{server.name}.log"
    target = Target(
        base_url=f"http://127.0.0.1:{port}{server.path}",
        api_key=_KEY,
        model=server.model(model),
        extra_body=server.extra_body,
    )
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            server.command(model, port, scratch),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            _wait_for_answer(process, target, log)
            yield target, time.perf_counter() - began
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for_answer(process: subprocess.Popen[bytes], target: Target, log: Path) -> None:
    """Send one-token requests until one is answered: readiness that means the same for every server."""
    body = {"model": target.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args[0]!r} ended with exit code {process.returncode}; see {log}")  # type: ignore[index]
        with contextlib.suppress(httpx.TransportError):
            headers = {"Authorization": f"Bearer {target.api_key}"}
            answer = httpx.post(f"{target.base_url}/chat/completions", json=body, headers=headers, timeout=60)
            if answer.is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"not ready within {_START_TIMEOUT_S} s; see {log}")
