"""Advertise GPUs that are not there, as documented for extended resources, and keep them advertised.

A kubelet that registers anew starts from what it finds on the machine, so the node's status is looked at again and
again and patched when the count differs.
Source: kubernetes.io, "Advertise Extended Resources for a Node".
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from dev.cluster.control_plane import client_files
from dev.cluster.errors import ClusterError
from dev.cluster.kube import MERGE_PATCH, ApiClient
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan

RESOURCE = "nvidia.com/gpu"
_INTERVAL_S = 1.0


def advertise(client: ApiClient, node: str, gpus: int) -> bool:
    """Make the node's capacity and allocatable say `gpus`; tell whether they had to be changed."""
    wanted = {RESOURCE: str(gpus)}
    status = client.request("GET", f"/api/v1/nodes/{node}").get("status", {})
    if all(status.get(field, {}).get(RESOURCE) == str(gpus) for field in ("capacity", "allocatable")):
        return False
    patch = {"status": {"capacity": wanted, "allocatable": wanted}}
    client.request("PATCH", f"/api/v1/nodes/{node}/status", patch, MERGE_PATCH)
    return True


def main() -> None:
    """Advertise for the cluster whose folder is the argument, until the process is ended."""
    paths = ClusterPaths(Path(sys.argv[1]))
    plan = ClusterPlan.from_json(paths.plan.read_text())
    client = ApiClient(plan.server, client_files(paths, "gpus"))
    while True:
        try:
            if advertise(client, plan.name, plan.gpus):
                print(f"node {plan.name} advertises {plan.gpus} {RESOURCE}", flush=True)
        except ClusterError as error:  # the API server restarts, or the kubelet has not registered yet
            print(error, flush=True)
        time.sleep(_INTERVAL_S)


if __name__ == "__main__":
    main()
