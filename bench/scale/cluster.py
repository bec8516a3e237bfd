"""A fresh cluster for each side of the comparison, the operator as a process in it, and the API server's own record."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from bench.scale.client import Admin
from dev.chart import render
from dev.cluster.api import Cluster
from dev.cluster.leftovers import MEMBER_VARIABLE
from dev.cluster.linux import find_processes
from dev.cluster.plan import Profile
from dev.paths import REPOSITORY

ACCOUNT = "operator"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_LEASE = "dedicate-operator"
_START_S = 120.0
# No CPU time but what renewing the Lease takes: this share of a core.
_IDLE_SHARE = 0.1
_IDLE_S = 3.0


@contextlib.contextmanager
def fresh_cluster(name: str) -> Iterator[Cluster]:
    """Give an API server with nothing in it."""
    cluster = Cluster(name, Profile.API)
    cluster.up(bound_to=os.getpid())
    try:
        yield cluster
    finally:
        cluster.down()


@contextlib.asynccontextmanager
async def administered(cluster: Cluster, namespace: str, *, num_connections: int) -> AsyncIterator[Admin]:
    """Give the administrator of a cluster with the CRD, the operator's account and a namespace."""
    async with Admin(cluster.kubeconfig, num_connections=num_connections) as admin:
        crd = yaml.safe_load((REPOSITORY / "crds/dedicatedendpoints.yaml").read_text())
        await admin.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)
        await _grant(admin)
        await admin.create("/api/v1/namespaces", {"metadata": {"name": namespace}})
        await _until_served(admin)
        yield admin


async def _grant(admin: Admin) -> None:
    """Give the operator's account what the chart gives it."""
    await admin.create("/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    for role in render({"fullnameOverride": _LEASE}, namespace="default"):
        if role["kind"] not in {"ClusterRole", "Role"} or "helm.sh/hook" in role["metadata"].get("annotations", {}):
            continue
        where = _RBAC if role["kind"] == "ClusterRole" else f"{_RBAC}/namespaces/default"
        name = role["metadata"]["name"]
        await admin.create(f"{where}/{role['kind'].lower()}s", {"metadata": {"name": name}, "rules": role["rules"]})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": role["kind"], "name": name}
        subjects = [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "default"}]
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": subjects}
        await admin.create(f"{where}/{role['kind'].lower()}bindings", binding)


async def _until_served(admin: Admin) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        try:
            await admin.get("/apis/dedicate.dev/v1alpha1/dedicatedendpoints")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.1)
        else:
            return


def read_cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read_cluster_cpu_s(cluster: Cluster) -> float:
    """Return the CPU time that API server, etcd and controllers have used together."""
    return sum(read_cpu_s(pid) for pid in find_processes(f"{MEMBER_VARIABLE}={cluster.paths.root}"))


async def await_idle(read_cpu_s: Callable[[], float], *, share: float) -> None:
    """Return when something has used less than this share of a core for some seconds."""
    while True:
        before = read_cpu_s()
        await asyncio.sleep(_IDLE_S)
        if read_cpu_s() - before < _IDLE_S * share:
            return


class OperatorProcess:
    """The operator, as a pod would run it."""

    def __init__(self, cluster: Cluster, log: Path) -> None:
        self._kubeconfig = cluster.kubeconfig_for(ACCOUNT, "default", log.with_suffix(".kubeconfig"))
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    async def start(self) -> None:
        """Return when it leads."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "HOME": str(self._log.parent),
            "KUBECONFIG": str(self._kubeconfig),
            "DEDICATE_RUNTIME_IMAGE": "registry.example/dedicate-runtime:bench",
            "DEDICATE_LIVENESS_PORT": str(self._port),
            "DEDICATE_LEASE_NAME": _LEASE,
        }
        command = [sys.executable, "-m", "dedicate_operator"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: ASYNC220 - returns at once
        await self.await_role("ok: leading")

    async def await_role(self, role: str) -> None:
        deadline = time.monotonic() + _START_S
        async with aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{self._port}/readyz") as response:
                        if (await response.text()).startswith(role):
                            return
                if time.monotonic() > deadline:
                    raise RuntimeError(f"not {role!r}; see {self._log}")
                await asyncio.sleep(0.02)

    async def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        await asyncio.get_running_loop().run_in_executor(None, self._process.wait, 30)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def cpu_s(self) -> float:
        """Return the CPU time that it has used."""
        return read_cpu_s(self.pid)

    def memory_bytes(self) -> dict[str, int]:
        """Return resident memory now, and the most it was."""
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return {"now": int(lines["VmRSS"].split()[0]) * 1024, "most": int(lines["VmHWM"].split()[0]) * 1024}

    async def await_idle(self) -> None:
        """Return when it has had nothing to do for some seconds."""
        await await_idle(self.cpu_s, share=_IDLE_SHARE)


class Audit:
    """What an account asked for, by the API server's own record."""

    def __init__(self, cluster: Cluster, account: str = f"default:{ACCOUNT}") -> None:
        self._path = cluster.audit_log
        self._user = f"system:serviceaccount:{account}"

    def writes(self, since: str = "") -> list[dict[str, Any]]:
        """Return its writes but those of the Lease, in the order of their answers."""
        found = []
        with self._path.open() as lines:
            for line in lines:
                if f'"{self._user}"' not in line:
                    continue
                event = json.loads(line)
                if event["requestReceivedTimestamp"] > since and event["objectRef"]["resource"] != "leases":
                    found.append(event)
        return found

    def first_success(self) -> dict[str, str]:
        """Return when each object was written for the first time, by its address; RFC 3339 times sort as text."""
        first: dict[str, str] = {}
        for event in self._successes():
            reference = event["objectRef"]
            name = reference.get("name") or event["auditID"]
            address = f"{reference['resource']}/{reference.get('subresource', '')}/{name}"
            first.setdefault(address, event["stageTimestamp"])
        return first

    def last_success(self) -> str:
        """Return when it wrote something for the last time."""
        return max(str(event["stageTimestamp"]) for event in self._successes())

    def _successes(self) -> Iterator[dict[str, Any]]:
        for event in self.writes():
            if event["responseStatus"]["code"] < 300 and event["objectRef"]["resource"] != "events":
                yield event

    def count(self, since: str = "") -> dict[str, int]:
        """Return how many writes of each kind there were, by resource and answer."""
        counts: Counter[str] = Counter()
        for event in self.writes(since):
            reference = event["objectRef"]
            resource = "/".join(filter(None, (reference["resource"], reference.get("subresource"))))
            counts[f"{event['verb']} {resource} {event['responseStatus']['code']}"] += 1
        return dict(sorted(counts.items()))
