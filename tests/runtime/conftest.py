"""A live runtime: the real program, in a process of its own, with real weights, on free ports."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import pytest

from dev.model.api import MODEL_ID, ensure_model

HERE = Path(__file__).parent
KEY = "sk-live-test"
DEDICATE = "smollm"
START_DEADLINE_S = 240
END_DEADLINE_S = 60


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
    _clients: list[object] = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/{DEDICATE}"

    @property
    def management_url(self):
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def headers(self):
        return {"Authorization": f"Bearer {self.key}"}

    def openai(self, **options):
        """Give the official client: a base URL and a key, nothing else."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key, timeout=120, **options)
        self._clients.append(client)
        return client

    def post(self, path, body, *, headers=None, timeout=120):
        return httpx.post(f"{self.url}{path}", json=body, headers=headers or self.headers, timeout=timeout)

    def complete(self, prompt, **fields):
        response = self.post("/v1/completions", {"model": self.model, "prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def stream(self, path, body):
        """Open a stream: a context manager whose value iterates lines."""
        return httpx.stream(
            "POST", f"{self.url}{path}", json={**body, "stream": True}, headers=self.headers, timeout=120
        )

    def metric(self, name):
        """Read one unlabelled sample."""
        text = httpx.get(f"{self.management_url}/metrics", timeout=10).text
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        return float(line.split()[1])

    def probe(self, name):
        return httpx.get(f"{self.management_url}/{name}", timeout=10).status_code

    def logged(self, message):
        """Give the log records with this message."""
        records = []
        for line in self.log.read_text().splitlines():
            if line.startswith("{"):
                record = json.loads(line)
                if record["message"] == message:
                    records.append(record)
        return records

    def wait_until(self, condition, *, deadline_s, what):
        """Look again and again until `condition` holds; a runtime that has ended fails at once."""
        deadline = time.monotonic() + deadline_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} took over {deadline_s} s:\n{self.log.read_text()[-3000:]}"
            assert self.process.poll() is None, f"ended before {what}:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.02)
        return value

    def wait_listening(self):
        record = self.wait_until(lambda: self.logged("listening"), deadline_s=60, what="listening")[0]
        self.port, self.management_port = record["port"], record["management_port"]
        return self

    def wait_ready(self):
        self.wait_listening()
        self.wait_until(lambda: self.probe("readyz") == 200, deadline_s=START_DEADLINE_S, what="loading")
        return self

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def wait_end(self):
        return self.process.wait(END_DEADLINE_S)

    def close(self):
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.wait_end()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@pytest.fixture(scope="session", autouse=True)
def interpreted(request):
    """Run what `test_triton.py` waits for, beside the other tests of the tier and behind them; name to its future.

    Only what was selected is started, one after the other; what nobody waited for is ended with the session.
    """
    wanted = [item.callspec.params["name"] for item in request.session.items if "test_in_the_interpreter" in item.name]
    running: list[subprocess.Popen[str]] = []

    def run(name):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", str(HERE / f"test_triton_{name}.py")]
        with subprocess.Popen(
            ["nice", *command],
            cwd=HERE.parents[1],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            running[:] = [process]
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    with ThreadPoolExecutor(max_workers=1) as executor:
        yield {name: executor.submit(run, name) for name in wanted}
        executor.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()


@pytest.fixture(scope="session")
def model_folder():
    return ensure_model()


@pytest.fixture(scope="session")
def start_runtime(tmp_path_factory):
    """Start a runtime; what a test starts ends with the session at the latest."""
    started = []

    def start(model, *options, key=KEY, environment=None):
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
def runtime(start_runtime, model_folder, ran_against):
    """The runtime that tests share; they leave it as they found it."""
    live = start_runtime(model_folder).wait_ready()
    record = live.logged("ready")[0]
    ran_against("runtime", f"{MODEL_ID} in {record['dtype']} on {record['device']}, loaded in {record['load_s']} s")
    return live
