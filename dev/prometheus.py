"""A real Prometheus for the tests, and its tool: rules are checked by the program that will run them."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from dev.cluster.slots import find_free_port
from dev.cluster.toolchain import obtain_prometheus

_START_DEADLINE_S = 60.0


class PrometheusError(Exception):
    """Prometheus or its tool refused something; the message is its own."""


def run_promtool(arguments: Sequence[str], *, stdin: str | None = None) -> str:
    """Run promtool and return what it printed.

    Raises:
        PrometheusError: it found fault.
    """
    command = [obtain_prometheus()["promtool"], *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    if result.returncode != 0:
        raise PrometheusError(f"{result.stdout}\n{result.stderr}".strip())
    return result.stdout


class Prometheus:
    """A running one, by its HTTP API."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def close(self) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").is_success
        except httpx.TransportError:
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an instant query, as Prometheus gives them: `metric` and `value`."""
        return list(self._ask("query", query=expression)["result"])

    def parse(self, expression: str) -> dict[str, Any]:
        """Return the syntax tree of an expression.

        Raises:
            PrometheusError: it is none.
        """
        return dict(self._ask("parse_query", query=expression))

    def alerts(self) -> list[dict[str, Any]]:
        return list(self._ask("alerts")["alerts"])

    def targets(self) -> list[dict[str, Any]]:
        return list(self._ask("targets", state="active")["activeTargets"])

    def _ask(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters).json()
        if answer["status"] != "success":
            raise PrometheusError(answer["error"])
        return answer["data"]


@contextmanager
def run_prometheus(
    targets: Mapping[str, Mapping[str, str]] | None = None, rules: Mapping[str, Any] | None = None
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes and evaluates every second, until the context ends.

    Args:
        targets: the labels of each target by its `host:port`.
        rules: the content of a rules file.

    Raises:
        PrometheusError: it did not start.
    """
    port = find_free_port()
    with tempfile.TemporaryDirectory(prefix="prometheus-") as name:
        folder = Path(name)
        (folder / "rules.yaml").write_text(yaml.safe_dump(rules or {"groups": []}))
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(_build_configuration(targets or {})))
        command = [
            obtain_prometheus()["prometheus"],
            f"--config.file={folder / 'prometheus.yaml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ]
        log = folder / "log"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output, cwd=folder) as process:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            try:
                _await_ready(prometheus, process, log)
                yield prometheus
            finally:
                prometheus.close()
                process.terminate()


def _build_configuration(targets: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    static = [{"targets": [address], "labels": dict(labels)} for address, labels in targets.items()]
    return {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "dedicate", "static_configs": static}],
    }


def _await_ready(prometheus: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while not prometheus.is_ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise PrometheusError(f"Prometheus did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
