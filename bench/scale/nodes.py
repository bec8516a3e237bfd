"""Nodes that run no containers: a real scheduler places the pods, and kwok says of each that it is ready."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.scale.client import Admin, Json
from dev.cluster.api import Cluster
from dev.cluster.leftovers import MEMBER_VARIABLE
from dev.cluster.toolchain import obtain_kwok

_NUM_NODES = 10
# More than any fleet of the bench asks for.
_CAPACITY = {"cpu": "100k", "memory": "1Pi", "ephemeral-storage": "1Pi", "nvidia.com/gpu": "100k", "pods": "4000"}
_SETTLED_S = 2.0
_END_S = 30


@contextlib.contextmanager
def running_nodes(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Run kube-scheduler and kwok beside the control plane, counted with its CPU time.

    Args:
        cluster: one that has no scheduler of its own.
        folder: where the logs go.
    """
    config = folder / "scheduler.json"
    config.write_text(json.dumps(_build_scheduler_config(cluster)))
    programs = {
        "kube-scheduler": [cluster.plan.binary("kube-scheduler"), f"--config={config}", "--secure-port=0"],
        "kwok": [
            *(obtain_kwok(), f"--kubeconfig={cluster.kubeconfig}", "--manage-all-nodes=true"),
            *("--node-lease-duration-seconds=40", "--cidr=10.64.0.0/12"),
        ],
    }
    with contextlib.ExitStack() as stack:
        for name, command in programs.items():
            stack.enter_context(_running(command, folder / f"{name}.log", cluster))
        yield


def _build_scheduler_config(cluster: Cluster) -> Json:
    return {
        "apiVersion": "kubescheduler.config.k8s.io/v1",
        "kind": "KubeSchedulerConfiguration",
        "leaderElection": {"leaderElect": False},
        "clientConnection": {"kubeconfig": str(cluster.kubeconfig), "qps": 300, "burst": 600},
    }


@contextlib.contextmanager
def _running(command: Sequence[str], log: Path, cluster: Cluster) -> Iterator[None]:
    environment = {**os.environ, MEMBER_VARIABLE: str(cluster.paths.root)}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream)
    try:
        # What it does not understand ends it at once.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_SETTLED_S)
            raise RuntimeError(f"{command[0]} ended: {log.read_text()[-500:]}")
        yield
    finally:
        process.terminate()
        process.wait(_END_S)


async def create_nodes(admin: Admin) -> None:
    """Create the nodes, for kwok to keep alive."""
    for index in range(_NUM_NODES):
        name = f"node-{index}"
        status = {"capacity": _CAPACITY, "allocatable": _CAPACITY}
        node = {"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": status}
        await admin.create("/api/v1/nodes", node)
