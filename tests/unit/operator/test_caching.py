"""What a download's container says becomes a condition, a commit and amounts on the endpoint."""

from __future__ import annotations

import json

import pytest

from dedicate_operator.caching import read_pinned
from dedicate_operator.kinds import DEPLOYMENT
from dedicate_operator.manifests import build_deployment
from dedicate_operator.names import TEMPLATE_HASH_ANNOTATION
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.situation import DownloadProgress, Situation
from dedicate_operator.spec import HubSource
from dedicate_operator.status import build_status
from tests.unit.operator.builders import DEFAULTS, as_child, custom_resource, pod

FIRST, SECOND = "1" * 40, "2" * 40
HUB = {"model": {"uri": "hf://org/name"}}
SAID = json.dumps({"commit": FIRST, "bytes": 16_100_000_000})
RUNNING = {"state": {"running": {}}}
INITIALIZING = {"state": {"waiting": {"reason": "PodInitializing"}}}


def ended(code=0, message=SAID):
    return {"state": {"terminated": {"exitCode": code, "message": message, "reason": "Completed"}}}


def crashed(code, message):
    terminated = ended(code, message)["state"]["terminated"]
    return {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "lastState": {"terminated": terminated}}


def look(*downloads, spec=HUB, requests=(), ready=False, **more):
    """The status of an endpoint with a pod for each status of a download's container."""
    endpoint = parse_endpoint(custom_resource(spec=spec))
    deployment = build_deployment(endpoint, DEFAULTS)
    template = deployment["spec"]["template"]
    pods = []
    for index, download in enumerate(downloads):
        made = pod(
            template["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION],
            name=f"pod-{index}",
            ready=ready,
            container=None if ready else INITIALIZING,
            creationTimestamp=f"2026-01-01T00:00:0{index}Z",
        )
        args = template["spec"]["initContainers"][0]["args"] if index >= len(requests) else requests[index]
        made["spec"] = {"initContainers": [{"name": "model-download", "args": args}]}
        made["status"]["initContainerStatuses"] = [{"name": "model-download", "ready": False, **download}]
        pods.append(made)
    children = {(DEPLOYMENT, "chat"): as_child(deployment)}
    # The youngest first: it is not the order in which they are observed that counts.
    return build_status(Situation(endpoint, DEFAULTS, Observed(children, tuple(reversed(pods))), **more))


def condition(status, type_="ModelCached"):
    (found,) = (item for item in status["conditions"] if item["type"] == type_)
    return found["status"], found["reason"]


def message(status, type_="ModelCached"):
    (found,) = (item for item in status["conditions"] if item["type"] == type_)
    return found["message"]


def test_a_download_that_ended_well_tells_the_commit():
    status = look(ended())
    assert condition(status) == ("True", "Loaded")
    assert FIRST in message(status)
    assert "16.1 GB" in message(status)
    assert "delete them" not in message(status)
    assert status["model"] == {
        "name": "org/name",
        "cacheState": "Loaded",
        "resolvedFrom": "hf://org/name@main",
        "resolvedRevision": FIRST,
        "downloadedBytes": 16_100_000_000,
        "totalBytes": 16_100_000_000,
    }


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (None, "has begun"),
        (DownloadProgress("resolving", 0, 0), "commit"),
        (DownloadProgress("downloading", 12_300_000_000, 16_100_000_000), "12.3 of 16.1 GB"),
        (DownloadProgress("downloading", 1_000_000, 2_500_000), "1.0 of 2.5 MB"),
        (DownloadProgress("waiting", 12_300_000_000, 16_100_000_000), "12.3 of 16.1 GB; another pod"),
        (DownloadProgress("waiting", 0, 0), "begun"),
        (DownloadProgress("verifying", 0, 16_100_000_000), "16.1 GB are verified"),
        (DownloadProgress("downloading", 1, 100_000_000, "the hub does not answer"), "the hub does not answer"),
    ],
)
def test_a_download_that_runs_says_how_far_it_is(progress, words):
    status = look(RUNNING, progress=progress)
    assert condition(status) == ("False", "Downloading")
    assert words in message(status)
    assert condition(status, "WorkloadAvailable") == ("False", "WaitingForModel")
    assert condition(status, "Ready") == ("False", "Downloading")
    assert status["model"]["cacheState"] == "Downloading"
    if progress and progress.total_bytes:
        assert status["model"]["downloadedBytes"] == progress.downloaded_bytes
        assert status["model"]["totalBytes"] == progress.total_bytes
    else:
        assert "totalBytes" not in status["model"]


@pytest.mark.parametrize(
    ("code", "reason"),
    [(10, "ModelNotFound"), (11, "GatedRepo"), (16, "DiskFull"), (18, "HubUnreachable"), (19, "Unauthorized")],
)
def test_a_download_that_failed_says_why_and_ready_takes_it_over(code, reason):
    status = look(crashed(code, "The hub said no."))
    assert condition(status) == ("False", reason)
    assert message(status).startswith("The hub said no.")
    assert condition(status, "WorkloadAvailable") == ("False", "WaitingForModel")
    assert condition(status, "Ready") == ("False", reason)
    assert message(status, "Ready").startswith("The hub said no.")
    assert status["model"]["cacheState"] == "Failed"


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("resolving", "GatedRepo"),
        ("verifying", "GatedRepo"),
        ("waiting", "Downloading"),
        ("downloading", "Downloading"),
    ],
)
def test_a_new_attempt_keeps_the_reason_until_it_gets_further(stage, reason):
    again = crashed(11, "gated") | RUNNING
    assert condition(look(again, progress=DownloadProgress(stage, 0, 10)))[1] == reason


def test_what_is_not_the_downloads_own_fault_is_the_workloads():
    missing = {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}}
    status = look(missing)
    assert condition(status, "WorkloadAvailable") == ("False", "SecretNotFound")
    assert condition(status, "Accepted") == ("False", "SecretNotFound")
    assert condition(status) == ("Unknown", "NotStarted")
    pull = {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}
    assert condition(look(pull), "WorkloadAvailable") == ("False", "ImagePull")
    other = look(crashed(1, ""))
    assert condition(other, "WorkloadAvailable") == ("False", "CrashLoop")
    assert "the download ended with exit code 1" in message(other, "WorkloadAvailable")


@pytest.mark.parametrize("spec", [HUB, HUB | {"suspend": True}])
def test_without_a_pod_nothing_is_known(spec):
    status = look(spec=spec)
    assert condition(status) == ("Unknown", "NotStarted")
    assert condition(status, "Ready")[1] in {"Starting", "Suspended"}


@pytest.mark.parametrize(
    ("uri", "words"), [("pvc://models/chat", "claim models"), ("oci://r/chat:1", "image r/chat:1")]
)
def test_what_is_not_downloaded_is_not_needed(uri, words):
    status = look(spec={"model": {"uri": uri}})
    assert condition(status) == ("True", "NotNeeded")
    assert words in message(status)
    assert status["model"]["cacheState"] == "NotNeeded"


def test_what_was_pinned_stays_whatever_a_pod_has():
    status = look(ended(), pinned=SECOND)
    assert status["model"]["resolvedRevision"] == SECOND
    assert FIRST in message(status)
    assert "delete them" in message(status)
    assert "totalBytes" not in status["model"]


def test_the_oldest_pod_decides_where_nothing_is_pinned():
    later = json.dumps({"commit": SECOND, "bytes": 1})
    assert look(ended(), ended(message=later))["model"]["resolvedRevision"] == FIRST


def test_a_pod_that_asked_for_another_revision_does_not_count():
    old = ["--model", "hf://org/name", "--revision", "v1", "--link", "/models/current"]
    status = look(ended(), requests=[old])
    assert "resolvedRevision" not in status["model"]
    assert condition(status) == ("Unknown", "NotStarted")


def test_a_revision_that_is_a_commit_needs_no_pod():
    spec = {"model": {"uri": "hf://org/name", "revision": FIRST}}
    assert look(spec=spec)["model"]["resolvedRevision"] == FIRST


@pytest.mark.parametrize(
    "said",
    [
        "",
        "not json",
        "[]",
        "{}",
        '{"commit": "main", "bytes": 1}',
        *(json.dumps({"commit": FIRST, "bytes": amount}) for amount in (-1, True, "1", 2**53)),
    ],
)
def test_what_a_download_did_not_say_is_not_made_up(said):
    status = look(ended(message=said), ready=True)
    assert "resolvedRevision" not in status["model"]
    assert condition(status) == ("True", "Loaded")


def test_only_a_download_that_ended_well_is_believed():
    assert "resolvedRevision" not in look(ended(code=1))["model"]


def test_a_pin_is_for_what_was_asked_then():
    status = {"model": {"resolvedFrom": "hf://org/name@main", "resolvedRevision": FIRST}}
    assert read_pinned(HubSource("org/name"), status) == FIRST
    assert read_pinned(HubSource("org/name", "v1"), status) is None
    assert read_pinned(HubSource("org/other"), status) is None
    assert read_pinned(HubSource("org/name"), {}) is None
    status["model"]["resolvedRevision"] = "main"
    assert read_pinned(HubSource("org/name"), status) is None
