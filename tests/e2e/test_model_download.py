"""Models from a hub on a real node; the hub is a server on this machine, the model is real."""

from __future__ import annotations

import threading
from contextlib import suppress

import httpx
import pytest

from dev.demo import objects
from dev.demo.endpoint import find_condition
from dev.demo.kube import await_value
from tests.e2e.mirror import FIRST, SECOND
from tests.hub_server import TOKEN, Faults

WEIGHTS = "model.safetensors"
CLAIM = "hub-cache"
QUESTION = {"model": "smollm", "prompt": "Once upon a time", "max_tokens": 8, "temperature": 0}
DOWNLOADED_S = 300
TOLD_S = 60


@pytest.fixture
def quick(hub):
    """The hub as it is when nothing is wrong with it."""
    hub.faults = Faults()
    hub.requests.clear()
    return hub


@pytest.fixture(scope="module")
def claim(kube, endpoints, tmp_path_factory):
    """A volume that several pods of the node write to, as they do on a shared file system."""
    folder = tmp_path_factory.mktemp("hub-cache")
    folder.chmod(0o777)
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"{endpoints.namespace}-{CLAIM}"},
        "spec": common
        | {
            "capacity": {"storage": "2Gi"},
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": endpoints.namespace, "name": CLAIM},
        },
    }
    request = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": CLAIM, "namespace": endpoints.namespace},
        "spec": common | {"volumeName": volume["metadata"]["name"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    kube.apply(volume, request)
    return CLAIM


def serve(endpoints, hub, name, repository="open", *, model=None, **spec):
    env = {"runtime": {"env": [{"name": "HF_ENDPOINT", "value": hub.url}]}}
    source = {"uri": f"hf://org/{repository}", "servedName": objects.ENDPOINT, **(model or {})}
    endpoints.apply(name, f"hf://org/{repository}", **{"model": source, **env, **spec})


def watch_messages(endpoints, name, until):
    """Collect what ModelCached says until it says `until`; messages in order, each once."""
    seen = []

    def ask():
        condition = find_condition(endpoints.get(name) or {}, "ModelCached")
        if condition and (not seen or seen[-1] != condition["message"]):
            seen.append(condition["message"])
        return True if condition.get("reason") == until else None

    await_value(lambda: f"ModelCached of {name} is {until}, saw {seen}", ask, deadline_s=DOWNLOADED_S)
    return seen


def test_three_replicas_download_once_and_say_how_far_they_are(kube, endpoints, quick, claim):
    size = len(quick.repositories["org/open"].commits[FIRST][WEIGHTS])
    quick.faults = Faults(bytes_per_s=size / 25)
    serve(endpoints, quick, "cached", replicas=3, cache={"existingClaim": {"name": claim}})
    messages = watch_messages(endpoints, "cached", "Loaded")
    assert [message for message in messages if " of " in message and "GB" in message], messages
    model = endpoints.get("cached")["status"]["model"]
    assert model["resolvedRevision"] == FIRST
    assert model["cacheState"] == "Loaded"
    assert model["downloadedBytes"] == model["totalBytes"] > size
    assert FIRST in kube.kubectl("get", "de", "cached", "--namespace=e2e", "--output=wide")
    pods = kube.items("pods", "e2e", "dedicate.dev/endpoint=cached")
    assert len(pods) == 3
    served = endpoints.await_served("cached")
    answer = httpx.post(
        f"{served.url}/completions", json=QUESTION, headers=served.headers, timeout=120, trust_env=False
    )
    assert answer.json()["choices"][0]["text"].strip()
    # All of them came past the download, and the hub was asked once.
    await_value("three pods have the model", lambda: count_cached(kube, "cached") == 3 or None, deadline_s=DOWNLOADED_S)
    assert quick.count_downloads(WEIGHTS) == 1


def replace_pods(kube, name):
    """Delete the pods and wait until a new one has the model."""

    def find():
        return {pod["metadata"]["uid"] for pod in kube.items("pods", "e2e", f"dedicate.dev/endpoint={name}")}

    old = find()
    kube.kubectl("delete", "pods", f"--selector=dedicate.dev/endpoint={name}", "--namespace=e2e", timeout_s=180)

    def has_new():
        pods = find()
        return (pods and not pods & old and count_cached(kube, name) >= 1) or None

    await_value("a new pod has the model", has_new, deadline_s=DOWNLOADED_S)


def count_cached(kube, name):
    num_cached = 0
    for pod in kube.items("pods", "e2e", f"dedicate.dev/endpoint={name}"):
        for status in pod["status"].get("initContainerStatuses", []):
            num_cached += status.get("state", {}).get("terminated", {}).get("exitCode") == 0
    return num_cached


def test_a_pod_that_comes_later_has_the_same_commit_although_the_branch_moved(kube, endpoints, quick, claim):
    """Out of the cache, in which the hub is not asked at all; the endpoint is the one of the test before."""
    quick.repositories["org/open"].refs["main"] = SECOND
    replace_pods(kube, "cached")
    endpoints.await_served("cached")
    assert endpoints.get("cached")["status"]["model"]["resolvedRevision"] == FIRST
    assert quick.requests == []
    endpoints.delete("cached")


def test_the_pin_holds_where_each_pod_has_a_cache_of_its_own(kube, endpoints, quick):
    """An emptyDir forgets everything; the ConfigMap does not."""
    quick.repositories["org/open"].refs["main"] = FIRST
    serve(endpoints, quick, "forgetful")
    watch_messages(endpoints, "forgetful", "Loaded")
    quick.repositories["org/open"].refs["main"] = SECOND
    quick.requests.clear()
    replace_pods(kube, "forgetful")
    assert quick.count_downloads(WEIGHTS) == 1
    assert endpoints.get("forgetful")["status"]["model"]["resolvedRevision"] == FIRST
    assert not [item for item in quick.requests if "/revision/" in item.path]
    (said,) = set(messages_of_downloads(kube, "forgetful"))
    assert FIRST in said
    endpoints.delete("forgetful")


def messages_of_downloads(kube, name):
    for pod in kube.items("pods", "e2e", f"dedicate.dev/endpoint={name}"):
        for status in pod["status"].get("initContainerStatuses", []):
            with suppress(KeyError):
                yield status["state"]["terminated"]["message"].strip()


def test_a_gated_repository_is_told_at_once_and_opens_by_itself(kube, endpoints, quick):
    serve(endpoints, quick, "gated", "gated")
    condition = endpoints.await_condition("gated", "ModelCached", {"GatedRepo"}, deadline_s=TOLD_S)
    assert "401" in condition["message"]
    assert "spec.model.tokenSecretRef" in condition["message"]
    ready = endpoints.await_condition("gated", "Ready", {"GatedRepo"}, deadline_s=TOLD_S)
    assert ready["message"] == condition["message"]
    kube.kubectl("create", "secret", "generic", "hub", f"--from-literal=token={TOKEN}", "--namespace=e2e")
    serve(endpoints, quick, "gated", "gated", model={"tokenSecretRef": {"name": "hub", "key": "token"}})
    watch_messages(endpoints, "gated", "Loaded")
    endpoints.delete("gated")


@pytest.mark.parametrize(
    ("name", "repository", "model", "cache", "reason", "words"),
    [
        ("absent", "nowhere", {}, None, "Unauthorized", "does not exist"),
        ("no-revision", "open", {"revision": "v9"}, None, "ModelNotFound", "revision v9"),
        ("too-small", "open", {}, {"emptyDir": {"sizeLimit": "1Mi"}}, "DiskFull", "1.0 MB at most"),
    ],
)
def test_what_cannot_be_had_is_told(endpoints, quick, name, repository, model, cache, reason, words):
    serve(endpoints, quick, name, repository, model=model, **({"cache": cache} if cache else {}))
    condition = endpoints.await_condition(name, "ModelCached", {reason}, deadline_s=TOLD_S)
    assert words in condition["message"]
    endpoints.delete(name)


def test_a_hub_that_cannot_be_reached_is_told(endpoints, quick):
    """Nobody listens at the mirror's address any more; two seconds of patience stand for a minute's."""
    deaf = [{"name": "HF_ENDPOINT", "value": "http://127.0.0.1:9"}, {"name": "DEDICATE_PATIENCE_SECONDS", "value": "2"}]
    endpoints.apply("deaf", "hf://org/open", runtime={"env": deaf})
    condition = endpoints.await_condition("deaf", "ModelCached", {"HubUnreachable"}, deadline_s=TOLD_S)
    assert "http://127.0.0.1:9" in condition["message"]
    ready = endpoints.await_condition("deaf", "Ready", {"HubUnreachable"}, deadline_s=TOLD_S)
    assert ready["message"] == condition["message"]
    endpoints.delete("deaf")


def test_a_folder_that_is_not_in_the_claim_is_told(endpoints, quick):
    endpoints.apply("no-folder", f"pvc://{objects.MODELS_CLAIM}/nowhere")
    condition = endpoints.await_condition("no-folder", "Ready", {"ModelNotFound"}, deadline_s=READY_TO_FAIL_S)
    assert "/models/nowhere" in condition["message"]
    assert find_condition(endpoints.get("no-folder"), "ModelCached")["reason"] == "NotNeeded"
    endpoints.delete("no-folder")


# The runtime loads its libraries before it looks for the model.
READY_TO_FAIL_S = 180


def test_a_download_is_ended_with_its_pod_at_once(kube, endpoints, quick):
    """Its grace period, ten minutes here, is made for answers; a download has none to give."""
    quick.faults = Faults(released=threading.Event())
    serve(endpoints, quick, "ended", termination={"preStopSeconds": 2, "drainSeconds": 600})

    def is_downloading():
        message = find_condition(endpoints.get("ended") or {}, "ModelCached").get("message", "")
        return True if " of " in message else None

    try:
        await_value("the download runs", is_downloading, deadline_s=TOLD_S)
        # Suspended, so that no other pod comes, whose program might not listen yet when it is told to end.
        endpoints.patch("ended", {"suspend": True})

        def has_ended():
            return not kube.items("pods", "e2e", "dedicate.dev/endpoint=ended") or None

        await_value("the pod has ended", has_ended, deadline_s=120)
    finally:
        quick.faults.released.set()
    endpoints.delete("ended")
