"""The two sides of the comparison, and what a settled fleet costs."""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.scale.client import Admin, run_all
from bench.scale.cluster import (
    Audit,
    OperatorProcess,
    administered,
    fresh_cluster,
    read_cluster_cpu_s,
    read_cpu_s,
)
from bench.scale.plan import ENDPOINTS, NAMESPACE, build_children, build_endpoint, collections, endpoint_name
from dev.cluster.api import Cluster

# As many as are quickest on the machine of the record; more only wait in the API server.
AT_ONCE = 16
_SAMPLE_S = 0.25
_DEADLINE_S = 1800.0
_DRIFT_DEADLINE_S = 30.0


async def apply_endpoints(admin: Admin, num_endpoints: int) -> float:
    """Create the endpoints; return how long that took."""
    began = time.monotonic()
    bodies = map(build_endpoint, range(num_endpoints))
    await run_all((admin.apply(f"{ENDPOINTS}/{body['metadata']['name']}", body) for body in bodies), at_once=AT_ONCE)
    return time.monotonic() - began


async def measure_bare(num_endpoints: int) -> dict[str, Any]:
    """Apply the children of so many endpoints, and do nothing else."""
    with fresh_cluster(f"bench-bare-{os.getpid()}") as cluster:
        async with administered(cluster, NAMESPACE, num_connections=AT_ONCE) as admin:
            await apply_endpoints(admin, num_endpoints)
            resources = await admin.list_all(ENDPOINTS)
            children = [child for resource in resources for child in build_children(resource)]
            began, cpu_s = time.monotonic(), read_cluster_cpu_s(cluster) + read_cpu_s(os.getpid())
            await run_all((admin.apply(path, body) for path, body in children), at_once=AT_ONCE)
            seconds = time.monotonic() - began
            cpu_s = read_cluster_cpu_s(cluster) + read_cpu_s(os.getpid()) - cpu_s
    return {"cpu_s": cpu_s, "seconds": seconds, "objects": len(children), "objects_per_s": len(children) / seconds}


async def measure_operator(num_endpoints: int, *, steady_s: float) -> dict[str, Any]:
    """Let the operator make them, then restart it, leave it alone, and break a child."""
    name = f"bench-operator-{os.getpid()}"
    with fresh_cluster(name) as cluster, tempfile.TemporaryDirectory() as folder:
        async with administered(cluster, NAMESPACE, num_connections=AT_ONCE) as admin:
            operator = OperatorProcess(cluster, Path(folder) / "log")
            applied_s = await apply_endpoints(admin, num_endpoints)
            result: dict[str, Any] = {"endpoints_applied_in_s": applied_s}
            await operator.start()
            try:
                result |= await _measure_convergence(cluster, admin, operator, num_endpoints)
                result["drift"] = await _measure_drift(admin, num_endpoints)
                await operator.await_idle()
                audit = Audit(cluster)
                result["restart"] = await _measure_restart(operator, audit)
                result["steady"] = await _measure_steady(operator, audit, steady_s)
            finally:
                await operator.stop()
    return result


async def _measure_convergence(
    cluster: Cluster, admin: Admin, operator: OperatorProcess, num_endpoints: int
) -> dict[str, Any]:
    """Wait until all is there; tell from the API server's record when that was, so that nobody has to ask meanwhile."""
    audit, samples = Audit(cluster), [(_now(), operator.cpu_s(), read_cluster_cpu_s(cluster))]
    sampling = asyncio.create_task(_sample_cpu(cluster, operator, samples))
    began = time.monotonic()
    try:
        while not await _is_converged(admin, num_endpoints):
            if time.monotonic() - began > _DEADLINE_S:
                raise RuntimeError("not everything is there")
            await operator.await_idle()
    finally:
        sampling.cancel()
    last = max(audit.first_success().values())
    (since, own_before, all_before), (_, own, everything) = samples[0], _at(samples, last)
    return {
        "seconds": (datetime.fromisoformat(last) - datetime.fromisoformat(since)).total_seconds(),
        "operator_cpu_s": own - own_before,
        "cpu_s": own - own_before + everything - all_before,
        "writes": audit.count(),
        "memory_bytes": operator.memory_bytes(),
    }


async def _sample_cpu(cluster: Cluster, operator: OperatorProcess, samples: list[tuple[str, float, float]]) -> None:
    while True:
        await asyncio.sleep(_SAMPLE_S)
        samples.append((_now(), operator.cpu_s(), read_cluster_cpu_s(cluster)))


def _at(samples: list[tuple[str, float, float]], time_: str) -> tuple[str, float, float]:
    """Return the first sample that is not before a time, else the last."""
    return next((sample for sample in samples if sample[0] >= time_), samples[-1])


async def _is_converged(admin: Admin, num_endpoints: int) -> bool:
    """Tell whether each endpoint has every child and a status."""
    for path in collections().values():
        if await _count(admin, path) < num_endpoints:
            return False
    items = await admin.list_all(ENDPOINTS)
    return sum("conditions" in item.get("status", {}) for item in items) >= num_endpoints


async def _count(admin: Admin, path: str) -> int:
    """Count what is in the namespace, where nobody else makes any; asked for without a selector, it costs one item."""
    page = await admin.get(f"{path}?limit=1")
    return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))


async def _measure_drift(admin: Admin, num_endpoints: int) -> dict[str, float]:
    """Delete and edit a child; return how long it took until it was right again."""
    name = endpoint_name(num_endpoints // 2)
    path = f"{collections()['services']}/{name}"
    wanted = (await admin.get(path))["spec"]["selector"]
    await admin.delete(path)
    began = time.monotonic()
    while not await _is_there(admin, path):
        _check_deadline(began, path)
        await asyncio.sleep(0.01)
    deleted_s = time.monotonic() - began
    await admin.merge(path, {"spec": {"selector": {"edit": "yes"}}})
    began = time.monotonic()
    while (await admin.get(path))["spec"]["selector"] != wanted:
        _check_deadline(began, path)
        await asyncio.sleep(0.01)
    return {"deleted_s": deleted_s, "edited_s": time.monotonic() - began}


async def _is_there(admin: Admin, path: str) -> bool:
    try:
        await admin.get(path)
    except RuntimeError:
        return False
    return True


def _check_deadline(began: float, path: str) -> None:
    if time.monotonic() - began > _DRIFT_DEADLINE_S:
        raise RuntimeError(f"{path} is not put right")


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
