"""Load drives the number of pods, and its end takes them back: kube-controller-manager's own autoscaler on live gauges.

What stands between pods and autoscaler is ours (`dev/cluster/pod_metrics.py`) and not prometheus-adapter.
"""

from __future__ import annotations

import pytest

from dev.cluster.pod_metrics import build_registration, serve_pod_metrics
from dev.demo.kube import await_value
from tests.e2e.load import Caller, Load

NAMESPACE = "e2e"
NAME = "scaled"
SELECTOR = f"dedicate.dev/endpoint={NAME}"
SPEC = {
    "runtime": {"args": ["--quantization", "int8"]},
    "autoscaling": {
        "minReplicas": 1,
        "maxReplicas": 2,
        "metric": {"type": "ActiveRequests", "targetValue": 2},
        "scaleDownDelaySeconds": 15,
    },
    "networkPolicy": {"mode": "None"},
}
# The autoscaler looks every 15 s; a pod takes half a minute to load, and more on two busy cores.
SCALE_S = 420


@pytest.fixture
def metrics_api(kube, node_cluster):
    """A custom metrics API in the cluster."""
    address = node_cluster.plan.host_address
    with serve_pod_metrics(address, lambda namespace, selector: kube.items("pods", namespace, selector)) as port:
        registration = build_registration(address, port)
        *_, service = registration
        kube.apply(*registration)

        def is_available():
            found = kube.get("apiservice", service["metadata"]["name"], "") or {}
            conditions = found.get("status", {}).get("conditions", [])
            return any(item["type"] == "Available" and item["status"] == "True" for item in conditions) or None

        try:
            await_value("the metrics API is served", is_available, deadline_s=60)
            yield
        finally:
            # An API that nobody serves would keep namespaces from going.
            for item in registration:
                kube.kubectl("delete", item["kind"], item["metadata"]["name"], "--namespace=kube-system")


@pytest.fixture
def scaled(endpoints, metrics_api):
    endpoints.apply(NAME, **SPEC)
    yield endpoints.await_served(NAME)
    endpoints.delete(NAME)


def await_replicas(kube, endpoints, number):
    """Wait until so many are asked for, there and ready."""

    def ask():
        endpoint = endpoints.get(NAME)
        wanted, ready = endpoint["spec"]["replicas"], endpoint["status"].get("readyDisplay")
        pods = [pod for pod in kube.items("pods", NAMESPACE, SELECTOR) if "deletionTimestamp" not in pod["metadata"]]
        return True if (wanted, ready, len(pods)) == (number, f"{number}/{number}", number) else None

    await_value(f"{number} pods serve", ask, deadline_s=SCALE_S)


@pytest.mark.promise(7)
def test_load_drives_the_number_of_pods_and_back(kube, endpoints, scaled):
    endpoints.await_condition(NAME, "AutoscalerActive", {"Scaling"})
    await_replicas(kube, endpoints, 1)
    callers = [Caller(f"client {number}", scaled.url, streams=True, max_tokens=64) for number in range(6)]
    with Load(callers, scaled.key) as load:
        await_replicas(kube, endpoints, 2)
        endpoints.await_condition(NAME, "AutoscalerActive", {"AtMaximum", "Scaling"})
    await_replicas(kube, endpoints, 1)
    assert load.record.failures == []
    assert load.record.num_requests > len(callers)
