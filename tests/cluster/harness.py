"""What the tests of this tier act through: the API server, a namespace, the operator's process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import pytest
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig

REPOSITORY = Path(__file__).parents[2]
ENDPOINTS = "/apis/dedicate.dev/v1alpha1"
DEPLOYMENTS = "/apis/apps/v1"
INGRESSES = "/apis/networking.k8s.io/v1"
CORE = "/api/v1"
MONITORING = "/apis/monitoring.coreos.com/v1"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
# The operator's default name for it.
LEASE = "dedicate-operator"
RUNTIME_IMAGE = "registry.example/dedicate-runtime:test"
# The garbage collector looks for new kinds, such as ours, every 30 s only.
COLLECTION_S = 60.0
SMALLEST = {"model": {"uri": "hf://SeaLLMs/SeaLLMs-v3-1.5B-Chat"}}

Json = dict[str, Any]
ResultT = TypeVar("ResultT")


def eventually(look: Callable[[], ResultT], timeout_s: float = 10.0) -> ResultT:
    """Return the first result of `look` that is true; fail with the last one, or the last failed assertion."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            result = look()
            if result:
                return result
            complaint = f"still {result!r}"
        except (AssertionError, KeyError, IndexError) as error:
            complaint = repr(error)
        if time.monotonic() > deadline:
            pytest.fail(f"not within {timeout_s} s: {complaint}")
        time.sleep(0.05)


class Api:
    """The API server, as one user: plain documents in and out."""

    def __init__(self, kubeconfig: Path) -> None:
        config = KubeConfig.from_file(kubeconfig).get()
        self._client = Client(config, ConnectionParams(timeout=httpx2.Timeout(30), trust_env=False))

    def close(self) -> None:
        self._client.close()

    def is_up(self) -> bool:
        try:
            return self.request("GET", "/readyz").is_success
        except httpx2.TransportError:
            return False

    def request(self, method: str, path: str, body: Any = None, type_: str = "application/json", **params: str):
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": type_} if body is not None else {}
        return self._client.request(method, path, content=content, headers=headers, params=params)

    def get(self, path: str, **params: str) -> Json | None:
        response = self.request("GET", path, **params)
        if response.status_code == 404:
            return None
        response.raise_for_status()
        return response.json()

    def items(self, path: str, **params: str) -> list[Json]:
        found = self.get(path, **params)
        return found["items"] if found else []

    def create(self, path: str, body: Json) -> Json:
        response = self.request("POST", path, body)
        assert response.is_success, response.text
        return response.json()

    def merge(self, path: str, body: Json) -> Json:
        response = self.request("PATCH", path, body, "application/merge-patch+json")
        assert response.is_success, response.text
        return response.json()

    def apply(self, path: str, body: Json) -> Json:
        response = self.request("PATCH", path, body, "application/apply-patch+yaml", fieldManager="test", force="true")
        assert response.is_success, response.text
        return response.json()

    def delete(self, path: str) -> None:
        response = self.request("DELETE", path, propagationPolicy="Background")
        assert response.is_success or response.status_code == 404, response.text

    def end_lease(self) -> None:
        """Take the Lease from an operator that was killed: as if it had run out, for which test_leadership waits."""
        self.merge(f"{LEASES}/{LEASE}", {"spec": {"holderIdentity": ""}})


class Namespace:
    """One namespace of one test, with short ways to what is in it."""

    def __init__(self, api: Api, name: str) -> None:
        self.api = api
        self.name = name

    def path(self, group: str, plural: str, name: str = "") -> str:
        return f"{group}/namespaces/{self.name}/{plural}" + (f"/{name}" if name else "")

    def apply(self, name: str, spec: Json | None = None) -> Json:
        body = {
            "apiVersion": "dedicate.dev/v1alpha1",
            "kind": "DedicatedEndpoint",
            "metadata": {"name": name},
            "spec": spec or SMALLEST,
        }
        return self.api.apply(self.path(ENDPOINTS, "dedicatedendpoints", name), body)

    def endpoint(self, name: str) -> Json:
        return self.api.get(self.path(ENDPOINTS, "dedicatedendpoints", name)) or {}

    def merge(self, name: str, spec: Json) -> Json:
        return self.api.merge(self.path(ENDPOINTS, "dedicatedendpoints", name), {"spec": spec})

    def delete(self, name: str) -> None:
        self.api.delete(self.path(ENDPOINTS, "dedicatedendpoints", name))

    def await_next_second(self, name: str) -> None:
        """Return when an endpoint made now is younger: creation times have whole seconds, in one the uid decides."""
        made = self.endpoint(name)
        path = self.path(ENDPOINTS, "dedicatedendpoints")

        def look() -> bool:
            probe = self.api.request("POST", path, {**made, "metadata": {"name": "probe"}}, dryRun="All").json()
            return bool(probe["metadata"]["creationTimestamp"] > made["metadata"]["creationTimestamp"])

        eventually(look)

    def deployment(self, name: str) -> Json | None:
        return self.api.get(self.path(DEPLOYMENTS, "deployments", name))

    def service(self, name: str) -> Json | None:
        return self.api.get(self.path(CORE, "services", name))

    def ingress(self, name: str) -> Json | None:
        return self.api.get(self.path(INGRESSES, "ingresses", name))

    def policy(self, name: str) -> Json | None:
        return self.api.get(self.path(INGRESSES, "networkpolicies", name))

    def secret(self, name: str) -> Json | None:
        return self.api.get(self.path(CORE, "secrets", name))

    def claim(self, name: str) -> Json | None:
        return self.api.get(self.path(CORE, "persistentvolumeclaims", name))

    def pods(self, endpoint: str) -> list[Json]:
        pods = self.api.items(self.path(CORE, "pods"), labelSelector=f"dedicate.dev/endpoint={endpoint}")
        return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]

    def conditions(self, name: str) -> dict[str, tuple[str, str]]:
        """Return status and reason by the type of the condition."""
        found = self.endpoint(name).get("status", {}).get("conditions", [])
        return {condition["type"]: (condition["status"], condition["reason"]) for condition in found}

    def message(self, name: str, type_: str) -> str:
        found = self.endpoint(name)["status"]["conditions"]
        return next(condition["message"] for condition in found if condition["type"] == type_)

    def await_condition(self, name: str, type_: str, status: str, reason: str, timeout_s: float = 10.0) -> None:
        def look() -> bool:
            actual = self.conditions(name).get(type_)
            assert actual == (status, reason), f"{type_} is {actual}"
            return True

        eventually(look, timeout_s)

    def await_children(self, name: str) -> None:
        eventually(lambda: self.deployment(name) and self.service(name) and self.ingress(name))
        eventually(lambda: self.conditions(name))

    def set_pod_status(self, pod: Json, status: Json) -> None:
        """Speak for the kubelet and the scheduler, which this cluster has not."""
        self.api.merge(self.path(CORE, "pods", pod["metadata"]["name"]) + "/status", {"status": status})

    def admit_route(self, name: str) -> None:
        """Speak for an ingress controller."""
        status = {"loadBalancer": {"ingress": [{"ip": "192.0.2.7"}]}}
        self.api.merge(self.path(INGRESSES, "ingresses", name) + "/status", {"status": status})


class Operator:
    """The process. Started, stopped and killed as a kubelet would."""

    def __init__(self, kubeconfig: Path, log: Path, program: tuple[str, ...] = ("-m", "dedicate_operator")) -> None:
        self._program = program
        self._kubeconfig = kubeconfig
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.metrics_port = 0

    def start(self, role: str | None = "leading", **environment: str) -> None:
        """Return once the process is ready in that role; None awaits nothing."""
        with socket.socket() as probe, socket.socket() as other:
            for listener in (probe, other):
                listener.bind(("127.0.0.1", 0))
            self._port, self.metrics_port = (listener.getsockname()[1] for listener in (probe, other))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, *self._program],
                env={
                    "PATH": os.environ["PATH"],
                    # Where the tests import the operator from, the process does, too.
                    "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
                    "HOME": str(self.log.parent),
                    "KUBECONFIG": str(self._kubeconfig),
                    "DEDICATE_RUNTIME_IMAGE": RUNTIME_IMAGE,
                    "DEDICATE_ROUTE_EXTERNAL_PORT": "8080",
                    "DEDICATE_LIVENESS_PORT": str(self._port),
                    "DEDICATE_METRICS_PORT": str(self.metrics_port),
                    **environment,
                },
                stdout=log,
                stderr=log,
            )
        if role is not None:
            self.await_role(role, timeout_s=60)

    def read_metrics(self) -> str:
        """Return what a scrape gets."""
        response = httpx2.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10)
        assert response.status_code == 200
        return response.text

    def probe(self, path: str) -> int | None:
        return self.ask(path)[0]

    def ask(self, path: str) -> tuple[int | None, str]:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text()[-4000:]
        try:
            response = httpx2.get(f"http://127.0.0.1:{self._port}{path}", timeout=5)
        except httpx2.TransportError as error:
            return None, repr(error)
        return response.status_code, response.text.strip()

    def await_role(self, role: str, timeout_s: float = 10.0) -> None:
        def look() -> bool:
            status, text = self.ask("/readyz")
            assert status == 200, text
            assert text.startswith(f"ok: {role}"), text
            return True

        eventually(look, timeout_s)

    def send(self, signal_: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signal_)

    def suspend(self) -> str:
        """Stop it where it is; return a time by which it stood still, as the audit log words times."""
        self.send(signal.SIGSTOP)
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/stat")
        eventually(lambda: status.read_text().rpartition(")")[2].split()[0] == "T")
        return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def stop(self, signal_: signal.Signals = signal.SIGTERM) -> int:
        self.send(signal_)
        return self.wait()

    def wait(self) -> int:
        """Return its exit status when it has ended."""
        assert self._process is not None
        return self._process.wait(timeout=20)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def records(self) -> list[Json]:
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
