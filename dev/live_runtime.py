"""A live runtime as pytest fixtures: the real program, in a process of its own, with real weights, on free ports."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import httpx
import pytest

from dev.model.api import MODEL_ID, ensure_model

if TYPE_CHECKING:
    import openai

KEY = "sk-live-test"
DEDICATE = "smollm"
START_DEADLINE_S = 240
END_DEADLINE_S = 60

T = TypeVar("T")


@dataclass
class Runtime:
    """One running runtime, and ways to speak to it."""

    process: subprocess.Popen[bytes]
    log: Path
    keys_dir: Path
    port: int = 0
    management_port: int = 0
    key: str = KEY
    model: str = MODEL_ID
    _clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{DEDICATE}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}

    def openai(self, **options: Any) -> openai.OpenAI:
        """Give the official client: a base URL and a key, nothing else."""
        import openai

        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=120, **options)
        self._clients.append(client)
        return client

    def post(
        self, path: str, body: object, *, headers: Mapping[str, str] | None = None, timeout: float = 120
    ) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, headers=headers or self.headers, timeout=timeout)

    def complete(self, prompt: object, **fields: Any) -> Any:
        response = self.post("/v1/completions", {"model": self.model, "prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path: str, body: Mapping[str, Any]) -> AbstractContextManager[httpx.Response]:
        """Open a stream: a context manager whose value iterates lines."""
        return httpx.stream(
            "POST", f"{self.url}{path}", json={**body, "stream": True}, headers=self.headers, timeout=120
        )

    def metric(self, name: str) -> float:
        """Read one unlabelled sample."""
        text = httpx.get(f"{self.management_url}/metrics", timeout=10).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def probe(self, name: str) -> int:
        return httpx.get(f"{self.management_url}/{name}", timeout=10).status_code

    def logged(self, message: str) -> list[dict[str, Any]]:
        """Give the log records with this message."""
        records = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                if record["message"] == message:
                    records.append(record)
        return records

    def wait_logged(self, message: str, **fields: object) -> dict[str, Any]:
        """Give the first log record with this message and these fields; it is written a moment after the fact."""

        def find() -> dict[str, Any] | None:
            return next((record for record in self.logged(message) if fields.items() <= record.items()), None)

        found = self.wait_until(find, deadline_s=10, what=f"{message!r} with {fields} in the log")
        assert found is not None
        return found

    def wait_until(self, condition: Callable[[], T], *, deadline_s: float, what: str) -> T:
        """Look again and again until `condition` holds; a runtime that has ended fails at once."""
        deadline = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} took over {deadline_s} s:\n{self.log.read_text()[-3000:]}"
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return value

    def wait_listening(self) -> Runtime:
        record = self.wait_until(lambda: self.logged("listening"), deadline_s=60, what="listening")[0]
        self.port, self.management_port = record["port"], record["management_port"]
        return self

    def wait_ready(self) -> Runtime:
        self.wait_listening()
        self.wait_until(lambda: self.probe("readyz") == 200, deadline_s=START_DEADLINE_S, what="loading")
        return self

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait_end(self) -> int:
        return self.process.wait(END_DEADLINE_S)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.wait_end()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


class StartRuntime(Protocol):
    """Starts a runtime that serves `model` with more options than the fixture's own."""

    def __call__(
        self, model: object, *options: str, key: str = KEY, environment: Mapping[str, str] | None = None
    ) -> Runtime: ...


@pytest.fixture(scope="session")
def model_folder() -> Path:
    return ensure_model()


@pytest.fixture(scope="session")
def start_runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartRuntime]:
    """Start a runtime; what a test starts ends with the session at the latest."""
    started: list[Runtime] = []

    def start(model: object, *options: str, key: str = KEY, environment: Mapping[str, str] | None = None) -> Runtime:
        scratch = tmp_path_factory.mktemp("runtime")
        keys = scratch / "keys"
        keys.mkdir()
        (keys / "tester").write_text(key)
        log = scratch / "log"
        command = [
            *(sys.executable, "-m", "dedicate_runtime", "--model", str(model), "--served-model-name", MODEL_ID),
            *("--dedicate", DEDICATE, "--host", "127.0.0.1", "--port", "0", "--management-port", "0"),
            *("--api-keys-dir", str(keys), "--kv-cache-tokens", "16384", "--drain-seconds", "1", *options),
        ]
        with log.open("wb") as stream:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=stream, env=environment)
        runtime = Runtime(process, log, keys, key=key)
        started.append(runtime)
        return runtime

    yield start
    for runtime in started:
        runtime.close()


@pytest.fixture(scope="session")
def runtime(start_runtime: StartRuntime, model_folder: Path, ran_against: Callable[[str, str], None]) -> Runtime:
    """The runtime that tests share; they leave it as they found it."""
    live = start_runtime(model_folder).wait_ready()
    record = live.wait_logged("ready")
    ran_against("runtime", f"{MODEL_ID} in {record['dtype']} on {record['device']}, loaded in {record['load_s']} s")
    return live
