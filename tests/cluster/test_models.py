"""Where models come from: what a download tells becomes conditions, progress and a pin; images are volumes.

There is no kubelet here: the tests speak for it, and serve the page that a download serves.
"""

from __future__ import annotations

import json
import os
import uuid

import pytest
import yaml

from dedicate_operator.names import pin_name
from dedicate_runtime.download.page import serve_progress
from dedicate_runtime.download.progress import Progress, Stage
from dev.cluster.api import Cluster
from dev.cluster.plan import Profile
from tests.cluster.harness import CORE, ENDPOINTS, LEASE, LEASES, REPOSITORY, Api, Namespace, Operator, eventually

NOW = "2026-01-01T00:00:00Z"
SCHEDULED = {"type": "PodScheduled", "status": "True"}
FIRST, SECOND = "1" * 40, "2" * 40
HUB = {"uri": "hf://org/name"}
GB = 10**9
MAIN = pin_name("chat", "hf://org/name@main")


@pytest.fixture(autouse=True)
def running(operator):
    return operator


@pytest.fixture
def pod(namespace):
    namespace.apply("chat", {"model": HUB})
    return eventually(lambda: namespace.pods("chat"))[0]


def download(address="127.0.0.1", **state):
    base = {"name": "model-download", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
    waiting = {"state": {"waiting": {"reason": "PodInitializing"}}}
    return {
        "phase": "Pending",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [SCHEDULED],
        "initContainerStatuses": [base | state],
        "containerStatuses": [base | {"name": "runtime", "started": False} | waiting],
    }


RUNNING = {"state": {"running": {"startedAt": NOW}}}


def ended(commit=FIRST, num_bytes=16_100_000_000):
    said = json.dumps({"commit": commit, "bytes": num_bytes})
    times = {"startedAt": NOW, "finishedAt": NOW}
    return {"ready": True, "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": said, **times}}}


def failed(code, message):
    terminated = {"exitCode": code, "reason": "Error", "message": message, "startedAt": NOW, "finishedAt": NOW}
    return {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": terminated}}


def model_of(namespace):
    return namespace.endpoint("chat")["status"]["model"]


def pin(namespace, name=MAIN):
    return namespace.api.get(namespace.path(CORE, "configmaps", name))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (10, "ModelNotFound"),
        (11, "GatedRepo"),
        (16, "DiskFull"),
        (18, "HubUnreachable"),
        (19, "Unauthorized"),
        (20, "CorruptFile"),
    ],
)
def test_a_failed_download_stands_on_the_endpoint_within_seconds(namespace, pod, code, reason):
    namespace.set_pod_status(pod, download(**failed(code, "The hub said no.")))
    namespace.await_condition("chat", "ModelCached", "False", reason, timeout_s=5)
    namespace.await_condition("chat", "Ready", "False", reason)
    assert namespace.message("chat", "Ready").startswith("The hub said no.")
    assert model_of(namespace)["cacheState"] == "Failed"


def test_progress_is_asked_of_the_pod_and_told(namespace, pod):
    progress = Progress()
    progress.enter(Stage.DOWNLOADING, total_bytes=16_100_000_000, downloaded_bytes=0)
    address = f"127.{os.getpid() % 250 + 1}.7.9"
    with serve_progress(progress, address, 9000):
        namespace.set_pod_status(pod, download(address, **RUNNING))
        eventually(lambda: model_of(namespace)["totalBytes"] == 16_100_000_000)
        namespace.await_condition("chat", "ModelCached", "False", "Downloading")
        progress.add(12_300_000_000)
        eventually(lambda: "12.3 of 16.1 GB" in namespace.message("chat", "ModelCached"))
        assert model_of(namespace)["downloadedBytes"] == 12_300_000_000
    namespace.set_pod_status(pod, download(address, **ended()))
    namespace.await_condition("chat", "ModelCached", "True", "Loaded")
    assert model_of(namespace)["downloadedBytes"] == 16_100_000_000


def test_a_page_that_is_not_there_is_no_fault(namespace, pod):
    namespace.set_pod_status(pod, download("127.254.254.254", **RUNNING))
    namespace.await_condition("chat", "ModelCached", "False", "Downloading")
    namespace.await_condition("chat", "WorkloadAvailable", "False", "WaitingForModel")
    namespace.set_pod_status(pod, download(**ended()))
    namespace.await_condition("chat", "ModelCached", "True", "Loaded")


def test_the_commit_is_pinned_for_the_pods_that_come_and_nothing_rolls(namespace, pod):
    before = namespace.deployment("chat")
    namespace.set_pod_status(pod, download(**ended(FIRST)))
    eventually(lambda: model_of(namespace).get("resolvedRevision") == FIRST)
    made = pin(namespace)
    assert made["data"]["commit"] == FIRST
    assert made["immutable"] is True
    assert made["metadata"]["ownerReferences"][0]["uid"] == namespace.endpoint("chat")["metadata"]["uid"]
    (volume,) = [item for item in before["spec"]["template"]["spec"]["volumes"] if item["name"] == "model-pin"]
    assert volume["configMap"]["name"] == MAIN
    assert volume["configMap"]["optional"] is True
    assert namespace.deployment("chat")["metadata"]["generation"] == before["metadata"]["generation"]


def test_the_pin_outlives_the_status_and_the_operator(namespace, pod, operator):
    namespace.set_pod_status(pod, download(**ended(FIRST)))
    eventually(lambda: pin(namespace))
    operator.stop()
    path = namespace.path(ENDPOINTS, "dedicatedendpoints", "chat") + "/status"
    namespace.api.merge(path, {"status": None})
    assert "status" not in namespace.endpoint("chat")
    operator.start()
    eventually(lambda: model_of(namespace).get("resolvedRevision") == FIRST)
    assert pin(namespace)["data"]["commit"] == FIRST


def test_another_revision_is_resolved_anew(namespace, pod):
    namespace.set_pod_status(pod, download(**ended(FIRST)))
    eventually(lambda: model_of(namespace).get("resolvedRevision") == FIRST)
    namespace.merge("chat", {"model": {"revision": "v2"}})
    eventually(lambda: "resolvedRevision" not in model_of(namespace))
    new = eventually(lambda: [item for item in namespace.pods("chat") if "v2" in str(item["spec"]["initContainers"])])
    namespace.set_pod_status(new[0], download(**ended(SECOND)))
    eventually(lambda: model_of(namespace).get("resolvedRevision") == SECOND)
    assert model_of(namespace)["resolvedFrom"] == "hf://org/name@v2"
    assert pin(namespace)["data"]["commit"] == FIRST


def test_what_is_mounted_is_not_downloaded(namespace):
    namespace.apply("chat", {"model": {"uri": "pvc://models/chat"}})
    namespace.await_condition("chat", "ModelCached", "True", "NotNeeded")
    template = eventually(lambda: namespace.deployment("chat"))["spec"]["template"]["spec"]
    assert "initContainers" not in template


@pytest.mark.parametrize(("policy", "is_kept"), [("Retain", True), ("Delete", False)])
def test_the_cache_is_kept_or_goes_by_policy(namespace, policy, is_kept):
    cache = {"persistentVolumeClaim": {"size": "1Gi", "retentionPolicy": policy}}
    namespace.apply("chat", {"model": HUB, "cache": cache})
    claim = eventually(lambda: namespace.claim("chat-cache"))
    # The garbage collector may come to it later than to the Deployment.
    assert ("ownerReferences" in claim["metadata"]) is not is_kept
    namespace.delete("chat")
    eventually(lambda: not namespace.deployment("chat"), timeout_s=60)
    if is_kept:
        assert namespace.claim("chat-cache")["metadata"]["uid"] == claim["metadata"]["uid"]
        assert "deletionTimestamp" not in namespace.claim("chat-cache")["metadata"]
    else:
        eventually(lambda: not namespace.claim("chat-cache"), timeout_s=60)


IMAGE = {"model": {"uri": "oci://registry.example/models/chat:v1"}}


def test_an_image_where_the_api_server_has_no_image_volumes_is_told(namespace):
    namespace.apply("chat", IMAGE)
    namespace.await_condition("chat", "Accepted", "False", "ImageVolumeUnsupported")
    namespace.await_condition("chat", "Ready", "False", "ImageVolumeUnsupported")
    assert "1.35" in namespace.message("chat", "Ready")
    namespace.merge("chat", {"model": {"uri": "pvc://models/chat"}})
    namespace.await_condition("chat", "Accepted", "True", "Valid")
    eventually(lambda: namespace.deployment("chat"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """An API server with image volumes, as they are by default from Kubernetes 1.35, and an operator of its own."""
    cluster = Cluster(f"test-image-{os.getpid()}", Profile.API, feature_gates=("ImageVolume=true",))
    cluster.up(bound_to=os.getpid())
    operator = Operator(cluster.kubeconfig, tmp_path_factory.mktemp("newer") / "log")
    api = Api(cluster.kubeconfig)
    try:
        crd = yaml.safe_load((REPOSITORY / "crds/dedicatedendpoints.yaml").read_text())
        api.apply(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd['metadata']['name']}", crd)
        eventually(lambda: api.request("GET", f"{ENDPOINTS}/dedicatedendpoints").is_success, timeout_s=30)
        api.create(LEASES, {"metadata": {"name": LEASE}, "spec": {}})
        operator.start()
        name = f"t-{uuid.uuid4().hex[:8]}"
        api.create(f"{CORE}/namespaces", {"metadata": {"name": name}})
        eventually(lambda: api.get(f"{CORE}/namespaces/{name}/serviceaccounts/default"))
        yield Namespace(api, name)
    finally:
        api.close()
        if operator.is_running():
            operator.stop()
        cluster.down()


def test_an_image_is_a_volume_of_the_pod(newer):
    newer.apply("chat", IMAGE)
    pod = eventually(lambda: newer.pods("chat"))[0]["spec"]
    (volume,) = [item for item in pod["volumes"] if item["name"] == "model"]
    assert volume["image"] == {"reference": "registry.example/models/chat:v1", "pullPolicy": "IfNotPresent"}
    (container,) = pod["containers"]
    (mount,) = [item for item in container["volumeMounts"] if item["name"] == "model"]
    assert mount["mountPath"] == "/models"
    assert mount["readOnly"] is True
    assert container["args"][:2] == ["--model", "/models"]
    newer.await_condition("chat", "ModelCached", "True", "NotNeeded")
    newer.await_condition("chat", "Accepted", "True", "Valid")
