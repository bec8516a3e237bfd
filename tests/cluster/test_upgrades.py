"""Promise 5: an upgrade of the operator rolls no model."""

from __future__ import annotations

import pytest

from tests.cluster.harness import RUNTIME_IMAGE, SMALLEST, eventually

NEWER_IMAGE = "registry.example/dedicate-runtime:next"


@pytest.fixture
def settled(namespace, operator):
    """An endpoint that is served by the operator before, which has ended; the namespace."""
    namespace.apply("seallm", SMALLEST)
    namespace.await_children("seallm")
    settle(namespace)
    operator.stop()
    return namespace


def settle(namespace):
    """Speak for the kubelet, so that there is nothing under way."""

    def is_settled():
        deployment = namespace.deployment("seallm")
        for pod in namespace.pods("seallm"):
            ready = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "True"}]
            container = {"name": "runtime", "image": "x", "imageID": "x", "ready": True, "restartCount": 0}
            running = container | {"started": True, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}}
            status = {"phase": "Running", "conditions": ready, "containerStatuses": [running]}
            if (pod.get("status") or {}).get("phase") != "Running":
                namespace.set_pod_status(pod, status)
        return deployment["status"].get("availableReplicas") == deployment["spec"]["replicas"]

    eventually(is_settled)


@pytest.fixture
def upgraded(settled, operator):
    """The same endpoint under an operator with another default image."""
    operator.start(DEDICATE_RUNTIME_IMAGE=NEWER_IMAGE)
    yield settled
    operator.stop()


def image(namespace):
    (container,) = namespace.deployment("seallm")["spec"]["template"]["spec"]["containers"]
    return container["image"]


def pods(namespace):
    return {pod["metadata"]["uid"] for pod in namespace.pods("seallm")}


def test_promise_05_an_operator_upgrade_rolls_no_model(settled, operator):
    before, running = settled.deployment("seallm"), pods(settled)
    operator.start(DEDICATE_RUNTIME_IMAGE=NEWER_IMAGE)
    settled.await_condition("seallm", "Progressing", "False", "UpgradeAvailable")
    assert settled.deployment("seallm")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert pods(settled) == running
    assert NEWER_IMAGE in settled.message("seallm", "Progressing")
    assert settled.endpoint("seallm")["status"]["runtimeImage"] == RUNTIME_IMAGE
    # The other way round: a downgrade is an upgrade to what it was.
    operator.stop()
    operator.start()
    settled.await_condition("seallm", "Progressing", "False", "UpToDate")
    assert settled.deployment("seallm")["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


@pytest.mark.promise(5)
def test_drift_is_repaired_to_the_template_that_was_rendered(upgraded):
    path = upgraded.path("/apis/apps/v1", "deployments", "seallm")
    edit = {"spec": {"template": {"spec": {"containers": [{"name": "runtime", "image": "somebody/else:1"}]}}}}
    response = upgraded.api.request("PATCH", path, edit, "application/strategic-merge-patch+json")
    assert response.is_success, response.text
    eventually(lambda: image(upgraded) == RUNTIME_IMAGE, timeout_s=2)


@pytest.mark.promise(5)
def test_what_concerns_no_pod_renders_nothing(upgraded):
    upgraded.merge("seallm", {"replicas": 2})
    eventually(lambda: upgraded.deployment("seallm")["spec"]["replicas"] == 2)
    upgraded.merge("seallm", {"rollout": {"strategy": "RollingUpdate"}, "route": {"host": "x.example"}})
    eventually(lambda: upgraded.ingress("seallm")["spec"]["rules"][0]["host"] == "x.example")
    assert image(upgraded) == RUNTIME_IMAGE


@pytest.mark.promise(5)
def test_a_change_that_concerns_pods_takes_up_the_upgrade(upgraded):
    upgraded.merge("seallm", {"startup": {"timeoutSeconds": 900}})
    eventually(lambda: image(upgraded) == NEWER_IMAGE)
    settle(upgraded)
    upgraded.await_condition("seallm", "Progressing", "False", "UpToDate")
    assert upgraded.endpoint("seallm")["status"]["runtimeImage"] == NEWER_IMAGE


@pytest.mark.promise(5)
def test_the_policy_takes_up_the_upgrade_at_once(upgraded):
    upgraded.merge("seallm", {"runtime": {"upgradePolicy": "OnOperatorUpgrade"}})
    eventually(lambda: image(upgraded) == NEWER_IMAGE)
    upgraded.merge("seallm", {"runtime": {"upgradePolicy": "OnSpecChange"}})
    upgraded.merge("seallm", {"replicas": 2})
    eventually(lambda: upgraded.deployment("seallm")["spec"]["replicas"] == 2)
    assert image(upgraded) == NEWER_IMAGE


def test_a_deleted_deployment_is_rendered_anew(upgraded):
    path = upgraded.path("/apis/apps/v1", "deployments", "seallm")
    uid = upgraded.deployment("seallm")["metadata"]["uid"]
    upgraded.api.delete(path)
    eventually(lambda: (found := upgraded.deployment("seallm")) and found["metadata"]["uid"] != uid)
    assert image(upgraded) == NEWER_IMAGE
