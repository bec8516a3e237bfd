"""From what happens to pods to what the endpoint says. There is no kubelet here: the tests speak for it."""

from __future__ import annotations

import pytest

from tests.cluster.harness import CORE, SMALLEST, eventually

NOW = "2026-01-01T00:00:00Z"
SCHEDULED = {"type": "PodScheduled", "status": "True"}
READY = {
    "phase": "Running",
    "conditions": [SCHEDULED, {"type": "Ready", "status": "True"}],
    "containerStatuses": [
        {
            "name": "runtime",
            "image": "x",
            "imageID": "x",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": NOW}},
        }
    ],
}


@pytest.fixture(autouse=True)
def running(operator):
    return operator


@pytest.fixture
def pod(namespace):
    namespace.apply("seallm", {**SMALLEST, "route": {"host": f"{namespace.name}.example"}})
    return eventually(lambda: namespace.pods("seallm"))[0]


def container(**fields):
    status = {"name": "runtime", "image": "x", "imageID": "", "ready": False, "started": False, "restartCount": 1}
    return {"phase": "Pending", "conditions": [SCHEDULED], "containerStatuses": [status | fields]}


def waiting(reason, message=""):
    return container(state={"waiting": {"reason": reason, "message": message}})


def crashed(**terminated):
    terminated = {"startedAt": NOW, "finishedAt": "2026-01-01T00:01:00Z", "reason": "Error"} | terminated
    return container(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState={"terminated": terminated})


def test_promise_01_ready_means_a_ready_pod_behind_an_admitted_route(namespace, pod):
    namespace.await_condition("seallm", "Ready", "False", "Starting")
    namespace.set_pod_status(pod, READY)
    namespace.await_condition("seallm", "WorkloadAvailable", "True", "MinimumReplicas")
    namespace.await_condition("seallm", "Ready", "False", "NotAdmitted")
    namespace.admit_route("seallm")
    namespace.await_condition("seallm", "Ready", "True", "Serving")
    namespace.await_condition("seallm", "Progressing", "False", "UpToDate")
    status = namespace.endpoint("seallm")["status"]
    assert (status["replicas"], status["readyReplicas"], status["readyDisplay"]) == (1, 1, "1/1")
    assert status["url"] == f"http://{namespace.name}.example:8080/seallm/v1"
    namespace.set_pod_status(pod, {"conditions": [SCHEDULED, {"type": "Ready", "status": "False"}]})
    namespace.await_condition("seallm", "Ready", "False", "Starting")


@pytest.mark.promise(1)
@pytest.mark.parametrize(
    ("status", "reason", "sentence"),
    [
        (waiting("ErrImagePull", "not found: registry/x"), "ImagePull", "not found: registry/x"),
        (waiting("CreateContainerError", "no such runtime"), "ContainerStart", "no such runtime"),
        (crashed(exitCode=10, message="No folder /models/x."), "ModelNotFound", "No folder /models/x."),
        (crashed(exitCode=11, message="401 from the hub."), "GatedRepo", "401 from the hub."),
        (crashed(exitCode=14, message="No CUDA device."), "DeviceUnavailable", "No CUDA device."),
        (crashed(exitCode=1), "CrashLoop", "exit code 1"),
        (crashed(exitCode=137, reason="OOMKilled"), "OOMKilled", "spec.resources.limits.memory"),
        (crashed(exitCode=143, finishedAt="2026-01-01T00:30:00Z"), "StartupTimeout", "spec.startup.timeoutSeconds"),
    ],
)
def test_cause_of_a_broken_pod_stands_on_the_endpoint(namespace, pod, status, reason, sentence):
    namespace.set_pod_status(pod, status)
    namespace.await_condition("seallm", "WorkloadAvailable", "False", reason, timeout_s=5)
    namespace.await_condition("seallm", "Ready", "False", reason)
    assert sentence in namespace.message("seallm", "Ready")


@pytest.mark.promise(1)
def test_no_room_on_any_node(namespace, pod):
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    namespace.set_pod_status(pod, {"phase": "Pending", "conditions": [unschedulable]})
    namespace.await_condition("seallm", "WorkloadAvailable", "False", "Unschedulable", timeout_s=5)
    namespace.await_condition("seallm", "Progressing", "True", "AwaitingGPU")
    assert message in namespace.message("seallm", "Ready")


def test_missing_token_secret_is_named(namespace):
    model = {"uri": "hf://a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}
    namespace.apply("seallm", {"model": model})
    pod = eventually(lambda: namespace.pods("seallm"))[0]
    namespace.set_pod_status(pod, waiting("CreateContainerConfigError", 'secret "hub" not found'))
    namespace.await_condition("seallm", "Accepted", "False", "SecretNotFound", timeout_s=5)
    assert '"hub"' in namespace.message("seallm", "Accepted")


@pytest.mark.promise(1)
def test_missing_keys_secret_is_seen_in_events(namespace):
    namespace.apply("seallm", {**SMALLEST, "auth": {"apiKeysSecretRef": {"name": "team-keys"}}})
    pod = eventually(lambda: namespace.pods("seallm"))[0]
    assert namespace.secret("seallm-api-keys") is None
    namespace.set_pod_status(pod, waiting("ContainerCreating"))
    record_failed_mount(namespace, pod, "team-keys")
    namespace.await_condition("seallm", "Accepted", "False", "SecretNotFound", timeout_s=5)
    namespace.await_condition("seallm", "Ready", "False", "SecretNotFound")
    assert '"team-keys"' in namespace.message("seallm", "Accepted")


def test_deleted_generated_secret_is_made_again_when_a_pod_misses_it(namespace, pod):
    first = eventually(lambda: namespace.secret("seallm-api-keys"))["data"]["default"]
    namespace.api.delete(namespace.path(CORE, "secrets", "seallm-api-keys"))
    namespace.set_pod_status(pod, waiting("ContainerCreating"))
    record_failed_mount(namespace, pod, "seallm-api-keys")
    secret = eventually(lambda: namespace.secret("seallm-api-keys"), timeout_s=15)
    assert secret["data"]["default"] != first


def test_missing_limits_are_seen_in_events_without_a_right_to_read_them(namespace):
    namespace.apply("seallm", {**SMALLEST, "auth": {"limitsConfigMapRef": {"name": "team-limits"}}})
    pod = eventually(lambda: namespace.pods("seallm"))[0]
    namespace.set_pod_status(pod, waiting("ContainerCreating"))
    record_failed_mount(namespace, pod, "team-limits", kind="configmap")
    namespace.await_condition("seallm", "WorkloadAvailable", "False", "ConfigMapNotFound", timeout_s=5)
    assert '"team-limits"' in namespace.message("seallm", "Ready")


def record_failed_mount(namespace, pod, name, kind="secret"):
    message = f'MountVolume.SetUp failed for volume "mounted" : {kind} "{name}" not found'
    reference = {"kind": "Pod", "namespace": namespace.name, **{key: pod["metadata"][key] for key in ("name", "uid")}}
    event = {
        "metadata": {"name": f"{pod['metadata']['name']}.1"},
        "involvedObject": reference,
        "type": "Warning",
        "reason": "FailedMount",
        "message": message,
        "lastTimestamp": NOW,
    }
    namespace.api.create(namespace.path(CORE, "events"), event)


def test_quota_that_forbids_pods_is_told(namespace):
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}
    namespace.api.create(namespace.path(CORE, "resourcequotas"), quota)
    eventually(lambda: namespace.api.get(namespace.path(CORE, "resourcequotas", "none")).get("status", {}).get("hard"))
    namespace.apply("seallm")
    namespace.await_condition("seallm", "WorkloadAvailable", "False", "QuotaExceeded", timeout_s=15)
    assert "exceeded quota: none" in namespace.message("seallm", "Ready")


def find_new(namespace, old):
    return [pod for pod in namespace.pods("seallm") if pod["metadata"]["name"] != old["metadata"]["name"]]


def test_broken_change_leaves_the_old_pods_serving_and_says_so(namespace, pod):
    namespace.set_pod_status(pod, READY)
    eventually(lambda: namespace.ingress("seallm"))
    namespace.admit_route("seallm")
    namespace.await_condition("seallm", "Ready", "True", "Serving")
    namespace.merge("seallm", {"model": {"revision": "no-such"}})

    new = eventually(lambda: find_new(namespace, pod))[0]
    namespace.set_pod_status(new, crashed(exitCode=10, message="No revision no-such."))
    namespace.await_condition("seallm", "Ready", "True", "ServingPreviousSpec")
    eventually(lambda: "No revision no-such." in namespace.message("seallm", "Ready"))
    namespace.await_condition("seallm", "Progressing", "True", "RollingOut")


@pytest.mark.promise(6)
def test_rollout_goes_on_where_every_gpu_is_taken(namespace, pod):
    namespace.set_pod_status(pod, READY)
    namespace.await_condition("seallm", "WorkloadAvailable", "True", "MinimumReplicas")
    namespace.merge("seallm", {"model": {"revision": "next"}})
    new = eventually(lambda: find_new(namespace, pod))[0]
    message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    namespace.set_pod_status(new, {"phase": "Pending", "conditions": [unschedulable]})
    names = {new["metadata"]["name"]}
    eventually(lambda: {item["metadata"]["name"] for item in namespace.pods("seallm")} == names)
    namespace.set_pod_status(new, READY)
    namespace.await_condition("seallm", "WorkloadAvailable", "True", "MinimumReplicas")
    eventually(lambda: namespace.deployment("seallm")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 1)


@pytest.mark.promise(1)
def test_changes_of_conditions_are_events(namespace, pod):
    namespace.set_pod_status(pod, crashed(exitCode=15, message="Weights do not fit."))

    def look():
        events = namespace.api.items(
            namespace.path(CORE, "events"), fieldSelector="involvedObject.kind=DedicatedEndpoint"
        )
        told = {(event["type"], event["reason"]) for event in events}
        assert ("Warning", "OutOfMemory") in told, told
        assert ("Normal", "Valid") in told, told
        return True

    eventually(look)
