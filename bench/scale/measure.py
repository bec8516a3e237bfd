"""The two sides of the comparison, and what a settled fleet costs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.scale.client import Admin, Json, run_all
from bench.scale.cluster import (
    Audit,
    OperatorProcess,
    administered,
    await_idle,
    fresh_cluster,
    read_cluster_cpu_s,
    read_cpu_s,
)
from bench.scale.nodes import create_nodes, running_nodes
from bench.scale.plan import ENDPOINTS, NAMESPACE, Fleet, build_children, endpoint_name
from dev.cluster.api import Cluster

# As many as are quickest on the machine of the record; more only wait in the API server.
AT_ONCE = 16
_SAMPLE_S = 0.25
_DEADLINE_S = 1800.0
_DRIFT_DEADLINE_S = 30.0
# A control plane with nodes that renew their Leases uses a tenth of a core.
_CLUSTER_IDLE_SHARE = 0.25
_DEPLOYMENTS = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments"
_DEPLOYMENT_CONTROLLER = "kube-system:deployment-controller"


@contextlib.asynccontextmanager
async def _side(name: str, fleet: Fleet) -> AsyncIterator[tuple[Cluster, Admin, Path]]:
    """Give a control plane with nothing but the nodes, its administrator, and a folder."""
    with (
        fresh_cluster(f"bench-{name}-{os.getpid()}") as cluster,
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
    ):
        async with administered(cluster, NAMESPACE, num_connections=AT_ONCE) as admin:
            if fleet.has_nodes:
                await create_nodes(admin)
                stack.enter_context(running_nodes(cluster, Path(folder)))
            yield cluster, admin, Path(folder)


async def apply_endpoints(admin: Admin, fleet: Fleet) -> float:
    """Create the endpoints; return how long that took."""
    began = time.monotonic()
    bodies = fleet.endpoints()
    await run_all((admin.apply(f"{ENDPOINTS}/{body['metadata']['name']}", body) for body in bodies), at_once=AT_ONCE)
    return time.monotonic() - began


async def measure_bare(fleet: Fleet) -> dict[str, Any]:
    """Apply the children of so many endpoints, and do nothing else; with nodes, until every Deployment is available."""
    async with _side("bare", fleet) as (cluster, admin, _):
        await apply_endpoints(admin, fleet)
        resources = await admin.list_all(ENDPOINTS)
        children = [child for resource in resources for child in build_children(resource)]
        samples = [(_now(), 0.0, _read_cpu_s(cluster))]
        sampling = asyncio.create_task(_sample_cpu(lambda: (0.0, _read_cpu_s(cluster)), samples))
        try:
            await run_all((admin.apply(path, body) for path, body in children), at_once=AT_ONCE)
            ended = _now()
            if fleet.has_nodes:
                await _await_available(cluster, admin, fleet)
                ended = Audit(cluster, _DEPLOYMENT_CONTROLLER).last_success()
        finally:
            sampling.cancel()
    (since, _, before), (_, _, after) = samples[0], _at(samples, ended)
    seconds = _seconds_between(since, ended)
    return {
        "cpu_s": after - before,
        "seconds": seconds,
        "objects": len(children),
        "objects_per_s": len(children) / seconds,
    }


def _read_cpu_s(cluster: Cluster) -> float:
    return read_cluster_cpu_s(cluster) + read_cpu_s(os.getpid())


async def _await_available(cluster: Cluster, admin: Admin, fleet: Fleet) -> None:
    """Wait without asking: what tells when it was is the API server's record."""
    began = time.monotonic()
    while True:
        await await_idle(lambda: read_cluster_cpu_s(cluster), share=_CLUSTER_IDLE_SHARE)
        deployments = await admin.list_all(_DEPLOYMENTS)
        if sum(item["status"].get("availableReplicas", 0) for item in deployments) >= fleet.size:
            return
        _check_deadline(began, "availability", _DEADLINE_S)


async def measure_operator(fleet: Fleet, *, steady_s: float) -> dict[str, Any]:
    """Let the operator make them, then restart it, leave it alone, and break a child."""
    async with _side("operator", fleet) as (cluster, admin, folder):
        operator = OperatorProcess(cluster, folder / "log")
        applied_s = await apply_endpoints(admin, fleet)
        result: dict[str, Any] = {"endpoints_applied_in_s": applied_s}
        await operator.start()
        try:
            result |= await _measure_convergence(cluster, admin, operator, fleet)
            result["drift"] = await _measure_drift(admin, fleet)
            await operator.await_idle()
            audit = Audit(cluster)
            result["restart"] = await _measure_restart(operator, audit)
            result["steady"] = await _measure_steady(operator, audit, steady_s)
        finally:
            await operator.stop()
    return result


async def _measure_convergence(
    cluster: Cluster, admin: Admin, operator: OperatorProcess, fleet: Fleet
) -> dict[str, Any]:
    """Wait until all is there; tell from the API server's record when that was, so that nobody has to ask meanwhile."""
    audit, samples = Audit(cluster), [(_now(), operator.cpu_s(), read_cluster_cpu_s(cluster))]
    sampling = asyncio.create_task(_sample_cpu(lambda: (operator.cpu_s(), read_cluster_cpu_s(cluster)), samples))
    began = time.monotonic()
    try:
        while not await _is_converged(admin, fleet):
            _check_deadline(began, "the fleet", _DEADLINE_S)
            await operator.await_idle()
    finally:
        sampling.cancel()
    # Where pods become ready, the last status is the end; else statuses that tell why pods wait go on for a while.
    last = audit.last_success() if fleet.has_nodes else max(audit.first_success().values())
    (since, own_before, all_before), (_, own, everything) = samples[0], _at(samples, last)
    return {
        "seconds": _seconds_between(since, last),
        "operator_cpu_s": own - own_before,
        "cpu_s": own - own_before + everything - all_before,
        "writes": audit.count(),
        "memory_bytes": operator.memory_bytes(),
    }


def _seconds_between(since: str, until: str) -> float:
    return (datetime.fromisoformat(until) - datetime.fromisoformat(since)).total_seconds()


async def _sample_cpu(read: Callable[[], tuple[float, float]], samples: list[tuple[str, float, float]]) -> None:
    """Keep CPU times of the operator and of all others, with the time of day."""
    while True:
        await asyncio.sleep(_SAMPLE_S)
        samples.append((_now(), *read()))


def _at(samples: list[tuple[str, float, float]], time_: str) -> tuple[str, float, float]:
    """Return the first sample that is not before a time, else the last."""
    return next((sample for sample in samples if sample[0] >= time_), samples[-1])


async def _is_converged(admin: Admin, fleet: Fleet) -> bool:
    """Tell whether each endpoint has every child and a status; with nodes, whether its pod serves."""
    for path in fleet.collections().values():
        if await _count(admin, path) < fleet.size:
            return False
    return sum(map(_is_available if fleet.has_nodes else _has_status, await admin.list_all(ENDPOINTS))) >= fleet.size


def _has_status(endpoint: Json) -> bool:
    return "conditions" in endpoint.get("status", {})


def _is_available(endpoint: Json) -> bool:
    """Not Ready: no ingress controller runs, so that none admits the route."""
    conditions = endpoint.get("status", {}).get("conditions", [])
    return any(item["type"] == "WorkloadAvailable" and item["status"] == "True" for item in conditions)


async def _count(admin: Admin, path: str) -> int:
    """Count what is in the namespace, where nobody else makes any; asked for without a selector, it costs one item."""
    page = await admin.get(f"{path}?limit=1")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


async def _measure_drift(admin: Admin, fleet: Fleet) -> dict[str, float]:
    """Delete and edit a child; return how long it took until it was right again."""
    path = f"{fleet.collections()['services']}/{endpoint_name(fleet.size // 2)}"
    wanted = (await admin.get(path))["spec"]["selector"]
    await admin.delete(path)
    began = time.monotonic()
    while not await _is_there(admin, path):
        _check_deadline(began, path, _DRIFT_DEADLINE_S)
        await asyncio.sleep(0.01)
    deleted_s = time.monotonic() - began
    await admin.merge(path, {"spec": {"selector": {"edit": "yes"}}})
    began = time.monotonic()
    while (await admin.get(path))["spec"]["selector"] != wanted:
        _check_deadline(began, path, _DRIFT_DEADLINE_S)
        await asyncio.sleep(0.01)
    return {"deleted_s": deleted_s, "edited_s": time.monotonic() - began}


async def _is_there(admin: Admin, path: str) -> bool:
    try:
        await admin.get(path)
    except RuntimeError:
        return False
    return True


def _check_deadline(began: float, what: str, deadline_s: float) -> None:
    if time.monotonic() - began > deadline_s:
        raise RuntimeError(f"{what}: not as it should be after {deadline_s:.0f} s")


async def _measure_restart(operator: OperatorProcess, audit: Audit) -> dict[str, Any]:
    await operator.stop()
    since, began = _now(), time.monotonic()
    await operator.start()
    leads_s = time.monotonic() - began
    await operator.await_idle()
    return {
        "writes": audit.count(since),
        "leads_after_s": leads_s,
        "cpu_s": operator.cpu_s(),
        "memory_bytes": operator.memory_bytes(),
    }


async def _measure_steady(operator: OperatorProcess, audit: Audit, seconds: float) -> dict[str, Any]:
    since, cpu_s = _now(), operator.cpu_s()
    await asyncio.sleep(seconds)
    return {"seconds": seconds, "writes": audit.count(since), "cpu_s": operator.cpu_s() - cpu_s}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
