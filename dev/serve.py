"""`make serve`: the runtime alone, on 127.0.0.1, with the small real model. No cluster, no root.

Read from the environment: MODEL (a folder or hf://org/name), PORT, KEY, DEDICATE. Ends with Ctrl-C and leaves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

_HOST = "127.0.0.1"
_FIRST_PORT = 8000
_PORTS_TRIED = 100
_LOAD_TIMEOUT_S = 1800.0
"""A model from a hub comes over the network first."""
_STOP_TIMEOUT_S = 15.0
_DRAIN_S = 5
_SMALL_KV_CACHE_TOKENS = 32_768
"""1.5 GB for the small model, four of its contexts: enough for one person, and the machine stays usable."""


class ServeError(Exception):
    """What keeps the runtime from being served, as one sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What to serve and where; `model` None is the small real model."""

    model: str | None
    port: int
    key: str
    dedicate: str


def read_options(environment: Mapping[str, str]) -> ServeOptions:
    """Reads the environment; chooses a free port and a key where none is given.

    Raises:
        ServeError: the port is no number, or taken.
    """
    asked = environment.get("PORT", "")
    if asked and not asked.isdigit():
        raise ServeError(f"PORT must be a number, not {asked!r}.")
    port = int(asked) if asked else next(filter(_is_free, range(_FIRST_PORT, _FIRST_PORT + _PORTS_TRIED)), 0)
    if asked and not _is_free(port):
        raise ServeError(f"Port {port} is taken. Choose another with PORT=.")
    return ServeOptions(
        model=environment.get("MODEL") or None,
        port=port,
        key=environment.get("KEY") or f"sk-{secrets.token_urlsafe(16)}",
        dedicate=environment.get("DEDICATE") or "smollm",
    )


def serve(options: ServeOptions) -> int:
    """Runs the runtime in the foreground until it is interrupted; gives its exit code.

    Raises:
        ServeError: it did not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="dedicate-serve-") as scratch, _terminated_as_interrupt():
        folder = Path(scratch)
        log, failure, keys = folder / "runtime.log", folder / "failure", folder / "keys"
        keys.mkdir()
        (keys / "default").write_text(options.key)
        management_port = _free_port()
        command = [
            *(sys.executable, "-m", "dedicate_runtime", *_model_arguments(options.model)),
            *("--dedicate", options.dedicate, "--host", _HOST, "--api-keys-dir", str(keys)),
            *("--port", str(options.port), "--management-port", str(management_port)),
            *("--drain-seconds", str(_DRAIN_S), "--failure-file", str(failure)),
        ]
        with log.open("wb") as stream, _running(command, stream) as process:
            try:
                _wait_ready(process, management_port, failure, log)
                _print_usage(options, log)
                return process.wait()
            except KeyboardInterrupt:
                print("\nStopping", flush=True)
                return 0


def main() -> int:
    """Serves what the environment asks for; gives the exit code."""
    try:
        return serve(read_options(os.environ))
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _model_arguments(model: str | None) -> list[str]:
    if model is not None:
        return ["--model", model if "://" in model else str(Path(model).expanduser().resolve())]
    from dev.model.api import MODEL_ID, ensure_model

    print("Preparing the model (about 15 s the first time)", flush=True)
    folder = ensure_model()
    kv_cache = ("--kv-cache-tokens", str(_SMALL_KV_CACHE_TOKENS))
    return ["--model", str(folder), "--served-model-name", MODEL_ID, *kv_cache]


@contextlib.contextmanager
def _running(command: list[str], log: object) -> Generator[subprocess.Popen[bytes], None, None]:
    """Runs a process for as long as the block does. Interrupts are ours to pass on, so it has a session of its own."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextlib.contextmanager
def _terminated_as_interrupt() -> Generator[None, None, None]:
    """Treats SIGTERM like Ctrl-C, so that `kill` leaves nothing behind either."""
    before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wait_ready(process: subprocess.Popen[bytes], port: int, failure: Path, log: Path) -> None:
    """Waits until the runtime serves, and says every few seconds how long that has taken."""
    started = time.monotonic()
    told = started
    while (now := time.monotonic()) - started < _LOAD_TIMEOUT_S:
        if process.poll() is not None:
            told_why = failure.read_text() if failure.is_file() else log.read_text()[-2000:]
            raise ServeError(f"The runtime ended with exit code {process.returncode}: {told_why.strip()}")
        if _is_ready(port):
            print(f"Ready after {now - started:.1f} s", flush=True)
            return
        if now - told >= 5:
            told = now
            print(f"Loading, {now - started:.0f} s", flush=True)
        time.sleep(0.1)
    raise ServeError(f"The runtime was not ready after {_LOAD_TIMEOUT_S:.0f} s.")


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/readyz", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _print_usage(options: ServeOptions, log: Path) -> None:
    base = f"http://{_HOST}:{options.port}/{options.dedicate}"
    name = _model_name(base, options.key)
    print(f"\nURL  {base}/v1\nkey  {options.key}\nlog  {log}\ndocs {base}/docs\n")
    bodies = {
        "chat/completions": {
            "model": name,
            "messages": [{"role": "user", "content": "What is the capital of France?"}],
            "max_tokens": 64,
            "stream": True,
        },
        "completions": {"model": name, "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0},
    }
    for path, body in bodies.items():
        stream = "-N " if body.get("stream") else ""
        print(
            f"curl -sS {stream}{base}/v1/{path} -H 'Authorization: Bearer {options.key}' "
            f"-H 'Content-Type: application/json' -d '{json.dumps(body)}'\n"
        )
    print("Ctrl-C ends it.", flush=True)


def _model_name(base: str, key: str) -> str:
    request = urllib.request.Request(f"{base}/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(json.load(answer)["data"][0]["id"])


def _is_free(port: int) -> bool:
    try:
        with socket.create_server((_HOST, port)):
            return True
    except OSError:
        return False


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
