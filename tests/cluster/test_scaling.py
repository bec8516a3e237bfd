"""Who scales an endpoint, by what, and that only the operator writes the Deployment.

The autoscaler is kube-controller-manager's own. There is neither an adapter nor KEDA here: what it says without the one
is what we are after, and for the other the tests speak.
"""

from __future__ import annotations

import subprocess

import pytest
import yaml

from dev.cluster.manifests import KEDA, obtain_manifests
from dev.cluster.toolchain import find_python_tool
from tests.cluster.harness import ENDPOINTS, REPOSITORY, SMALLEST, eventually

AUTOSCALERS = "/apis/autoscaling/v2"
BUDGETS = "/apis/policy/v1"
SCALED = "/apis/keda.sh/v1alpha1"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
AUTOSCALING = {"maxReplicas": 4, "metric": {"targetValue": 8}}
# The autoscaler looks every 15 s.
AUTOSCALER_S = 60.0
# How late the operator may notice that a kind has come or gone, and some more.
KIND_S = 60.0
LOADING = {
    "phase": "Running",
    "conditions": [{"type": "PodScheduled", "status": "True"}],
    "containerStatuses": [
        {
            "name": "runtime",
            "image": "x",
            "imageID": "x",
            "ready": False,
            "started": False,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
    ],
}
SERVING = LOADING | {
    "conditions": [*LOADING["conditions"], {"type": "Ready", "status": "True"}],
    "containerStatuses": [LOADING["containerStatuses"][0] | {"ready": True, "started": True}],
}


@pytest.fixture(autouse=True)
def running(operator):
    return operator


def child(namespace, group, plural, name="seallm"):
    return namespace.api.get(namespace.path(group, plural, name))


def replicas(namespace):
    """Return those of the endpoint, and those of the Deployment."""
    return namespace.endpoint("seallm")["spec"]["replicas"], namespace.deployment("seallm")["spec"]["replicas"]


def writers_of_replicas(resource):
    """Return who wrote the field last, by the API server's own account."""
    entries = resource["metadata"]["managedFields"]
    return {entry["manager"] for entry in entries if "f:replicas" in entry["fieldsV1"].get("f:spec", {})}


@pytest.mark.promise(7)
def test_kubectl_scale(namespace, api_cluster):
    namespace.apply("seallm")
    namespace.await_children("seallm")
    command = [find_python_tool("kubectl"), f"--kubeconfig={api_cluster.kubeconfig}", f"--namespace={namespace.name}"]
    subprocess.run([*command, "scale", "de", "seallm", "--replicas=3"], check=True, capture_output=True, timeout=30)
    eventually(lambda: replicas(namespace) == (3, 3))


def test_promise_07_autoscalers_write_the_scale_and_the_operator_the_deployment(namespace):
    """The autoscaler comes without metrics to its least number, which it writes through the endpoint's scale."""
    namespace.apply("seallm", {**SMALLEST, "autoscaling": {**AUTOSCALING, "minReplicas": 2}})
    found = eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers"))
    assert found["spec"]["scaleTargetRef"]["kind"] == "DedicatedEndpoint"
    eventually(lambda: replicas(namespace) == (2, 2), AUTOSCALER_S)
    # Nobody else here writes the endpoint's replicas; the API server keeps no account of a custom resource's scale.
    assert writers_of_replicas(namespace.deployment("seallm")) == {"dedicate-operator"}
    # Without an adapter the number stays, and the endpoint says why.
    namespace.await_condition("seallm", "AutoscalerActive", "False", "MetricUnavailable", AUTOSCALER_S)
    assert "custom.metrics.k8s.io" in namespace.message("seallm", "AutoscalerActive")
    # Taken out, it goes, and what it wrote last stays.
    namespace.api.merge(namespace.path(ENDPOINTS, "dedicatedendpoints", "seallm"), {"spec": {"autoscaling": None}})
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers") is None)
    eventually(lambda: "AutoscalerActive" not in namespace.conditions("seallm"))
    assert replicas(namespace) == (2, 2)


def test_promise_07_never_scaled_down_while_loading(namespace):
    namespace.apply("seallm", {**SMALLEST, "replicas": 2})
    first, second = eventually(lambda: (found := namespace.pods("seallm"))[1:] and found)
    namespace.set_pod_status(first, SERVING)
    namespace.set_pod_status(second, LOADING)
    namespace.await_condition("seallm", "WorkloadAvailable", "True", "MinimumReplicas")
    namespace.merge("seallm", {"replicas": 1})
    eventually(lambda: "fewer pods, 1, follow" in namespace.message("seallm", "Progressing"))
    assert replicas(namespace) == (1, 2)
    namespace.set_pod_status(second, SERVING)
    eventually(lambda: replicas(namespace) == (1, 1))


@pytest.mark.promise(7)
def test_suspend_does_not_wait_for_what_loads_and_takes_the_autoscaler_along(namespace):
    namespace.apply("seallm", {**SMALLEST, "autoscaling": AUTOSCALING})
    (pod,) = eventually(lambda: namespace.pods("seallm"))
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers"))
    namespace.set_pod_status(pod, LOADING)
    namespace.merge("seallm", {"suspend": True})
    eventually(lambda: replicas(namespace) == (1, 0))
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers") is None)
    namespace.await_condition("seallm", "AutoscalerActive", "False", "Suspended")
    namespace.merge("seallm", {"suspend": False})
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers"))


def test_a_disruption_budget_never_blocks_a_drain(namespace):
    namespace.apply("seallm")
    budget = eventually(lambda: child(namespace, BUDGETS, "poddisruptionbudgets"))
    assert budget["spec"]["maxUnavailable"] == 1
    namespace.merge("seallm", {"replicas": 3, "disruption": {"minAvailable": 2}})
    eventually(lambda: child(namespace, BUDGETS, "poddisruptionbudgets")["spec"].get("minAvailable") == 2)
    assert "maxUnavailable" not in child(namespace, BUDGETS, "poddisruptionbudgets")["spec"]


@pytest.mark.parametrize("name", ["autoscaling", "autoscaling-hpa"])
def test_example_is_taken(namespace, name):
    apply_example(namespace, name)


def apply_example(namespace, name):
    """Apply each object of an example as it stands."""
    plurals = {
        "HorizontalPodAutoscaler": "horizontalpodautoscalers",
        "ScaledObject": "scaledobjects",
        "DedicatedEndpoint": "dedicatedendpoints",
    }
    for item in yaml.safe_load_all((REPOSITORY / f"examples/{name}.yaml").read_text()):
        path = namespace.path(f"/apis/{item['apiVersion']}", plurals[item["kind"]], item["metadata"]["name"])
        response = namespace.api.request(
            "PATCH", path, item, "application/apply-patch+yaml", fieldManager="test", fieldValidation="Strict"
        )
        assert response.is_success, response.text


@pytest.fixture
def keda(admin, operator):
    """KEDA's definition of ScaledObjects, for as long as the test runs, and an operator that knows a Prometheus."""
    definition = yaml.safe_load((obtain_manifests(KEDA) / "keda.sh_scaledobjects.yaml").read_text())
    path = f"{DEFINITIONS}/{definition['metadata']['name']}"
    operator.stop()
    operator.start(DEDICATE_PROMETHEUS_URL="http://prometheus.example:9090")

    def install():
        admin.apply(path, definition)
        eventually(lambda: admin.request("GET", f"{SCALED}/scaledobjects").is_success, timeout_s=30)

    def remove():
        admin.delete(path)
        eventually(lambda: admin.get(f"{SCALED}/scaledobjects") is None, timeout_s=30)

    yield install, remove
    remove()
    operator.stop()


@pytest.mark.promise(7)
def test_keda_takes_over_where_it_is_and_gives_back(namespace, keda):
    install, remove = keda
    namespace.apply("seallm", {**SMALLEST, "replicas": 2, "autoscaling": AUTOSCALING})
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers"))
    install()
    found = eventually(lambda: child(namespace, SCALED, "scaledobjects"), KIND_S)
    assert child(namespace, AUTOSCALERS, "horizontalpodautoscalers") is None
    assert found["spec"]["triggers"][0]["metadata"]["serverAddress"] == "http://prometheus.example:9090"
    namespace.await_condition("seallm", "AutoscalerActive", "Unknown", "Pending")
    for status, reason in (("False", "MetricUnavailable"), ("True", "Scaling")):
        told = {"type": "Ready", "status": status, "reason": "Told", "message": "by the test"}
        path = namespace.path(SCALED, "scaledobjects", "seallm") + "/status"
        namespace.api.merge(path, {"status": {"conditions": [told]}})
        namespace.await_condition("seallm", "AutoscalerActive", status, reason)
    apply_example(namespace, "autoscaling-keda")
    remove()
    eventually(lambda: child(namespace, AUTOSCALERS, "horizontalpodautoscalers"), KIND_S)
    assert replicas(namespace) == (2, 2)
