"""Promises of docs/promises.md that need a kubelet and that no other file of this tier holds."""

from __future__ import annotations

from datetime import datetime

# The liveness probe alone would end a silent container after three failures, ten seconds apart.
LIVENESS_S = 30
# Loading takes 5 to 20 s of one CPU; with a twelfth of one it takes a minute or more.
SLOW = {
    "requests": {"cpu": "50m", "memory": "1Gi", "ephemeral-storage": "64Mi"},
    "limits": {"cpu": "80m", "memory": "4Gi", "ephemeral-storage": "1Gi"},
}
READY_S = 900


def test_promise_13_a_loading_model_is_left_alone_for_as_long_as_it_may_take(kube, endpoints):
    endpoints.apply("slow", resources=SLOW, startup={"timeoutSeconds": 10}, route={"type": "None"})
    try:
        condition = endpoints.await_condition("slow", "WorkloadAvailable", {"StartupTimeout"}, deadline_s=180)
        assert "spec.startup.timeoutSeconds" in condition["message"]
        endpoints.apply("slow", resources=SLOW, startup={"timeoutSeconds": READY_S}, route={"type": "None"})
        endpoints.await_condition("slow", "Ready", {"Serving"}, deadline_s=READY_S)
        (status,) = [
            status
            for pod in kube.items("pods", endpoints.namespace, "dedicate.dev/endpoint=slow")
            for status in pod["status"]["containerStatuses"]
            if status["ready"]
        ]
        assert status["restartCount"] == 0
        assert loading_time(kube, endpoints.namespace) > LIVENESS_S
    finally:
        endpoints.delete("slow")


def loading_time(kube, namespace):
    """Return how many seconds lie between the container's start and the pod's readiness."""
    for pod in kube.items("pods", namespace, "dedicate.dev/endpoint=slow"):
        conditions = {condition["type"]: condition for condition in pod["status"]["conditions"]}
        if conditions["Ready"]["status"] == "True":
            (status,) = pod["status"]["containerStatuses"]
            started = datetime.fromisoformat(status["state"]["running"]["startedAt"])
            return (datetime.fromisoformat(conditions["Ready"]["lastTransitionTime"]) - started).total_seconds()
    raise AssertionError("no pod is ready")
