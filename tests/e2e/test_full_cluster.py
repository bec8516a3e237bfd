"""A rollout where the last accelerator is taken: it says so, lets the old pod go first, and comes to its end.

The accelerator is a number in the node's status, and the model runs on the CPU all the same.
"""

from __future__ import annotations

import json

import pytest

NAMESPACE = "e2e"
NAME = "solo"
RESOURCE = "example.com/only-one"
ROLL_S = 420


@pytest.fixture
def only_device(kube):
    """One device on the only node."""
    (node,) = kube.kubectl("get", "nodes", "--output=name").split()
    for amount in ("1", None):
        patch = json.dumps({"status": {field: {RESOURCE: amount} for field in ("capacity", "allocatable")}})
        kube.kubectl("patch", node, "--subresource=status", "--type=merge", f"--patch={patch}")
        if amount:
            yield


@pytest.fixture
def solo(endpoints, only_device):
    spec = {
        "accelerator": {"resourceName": RESOURCE, "count": 1, "sharedMemory": "128Mi"},
        "runtime": {"args": ["--device", "cpu", "--quantization", "int8"]},
    }
    endpoints.apply(NAME, **spec)
    endpoints.await_served(NAME)
    yield spec
    endpoints.delete(NAME)


def test_promise_06_a_rollout_without_a_free_accelerator_finishes(kube, endpoints, solo):
    old = {pod["metadata"]["uid"] for pod in kube.items("pods", NAMESPACE, f"dedicate.dev/endpoint={NAME}")}
    runtime = solo["runtime"] | {"env": [{"name": "TURN", "value": "2"}]}
    endpoints.apply(NAME, **solo | {"runtime": runtime})
    told = endpoints.await_condition(NAME, "Progressing", {"AwaitingGPU"}, deadline_s=ROLL_S)
    assert RESOURCE in told["message"]
    assert "go first" in told["message"]
    endpoints.await_condition(NAME, "Progressing", {"UpToDate"}, deadline_s=ROLL_S)
    endpoints.await_served(NAME)
    new = {pod["metadata"]["uid"] for pod in kube.items("pods", NAMESPACE, f"dedicate.dev/endpoint={NAME}")}
    assert not new & old
    # What can surge again does so with the next change.
    strategy = kube.get("deployment", NAME, NAMESPACE)["spec"]["strategy"]["rollingUpdate"]
    assert strategy == {"maxSurge": 1, "maxUnavailable": 0}
