from __future__ import annotations

import copy

import pytest

from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import DEPLOYMENT, INGRESS
from dedicate_operator.manifests import build_deployment
from dedicate_operator.names import TEMPLATE_HASH_ANNOTATION
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import place_route
from dedicate_operator.routing import build_url
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.situation import Refusal, Situation
from dedicate_operator.status import (
    MAX_MESSAGE_LENGTH,
    build_invalid_status,
    build_status,
    find_news,
    stamp_transitions,
)
from dedicate_operator.workload import is_awaiting_accelerator
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource, pod

SETTLED = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
ADMITTED = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
UNSCHEDULABLE = {
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NO_GPU}],
    "phase": "Pending",
}
CRASHED = {
    "state": {"waiting": {"reason": "CrashLoopBackOff"}},
    "lastState": {"terminated": {"exitCode": 10, "reason": "Error", "message": "No model."}},
}


def situation(spec=HUB, *, pods=(), deployment=SETTLED, ingress=ADMITTED, defaults=DEFAULTS, **more):
    """Return a situation; `pods` are pairs of (is of the present template, arguments of `pod`)."""
    endpoint = parse_endpoint(custom_resource(spec=spec))
    children = {}
    manifest = build_deployment(endpoint, defaults)
    current = manifest["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    if deployment is not None:
        children[DEPLOYMENT, "chat"] = as_child(manifest, **deployment)
    if ingress is not None:
        children[INGRESS, "chat"] = as_child(build_ingress(endpoint, place_route(endpoint, defaults)), **ingress)
    made = tuple(
        pod(current if is_current else "old", name=f"pod-{index}", **fields)
        for index, (is_current, fields) in enumerate(pods)
    )
    return Situation(endpoint, defaults, Observed(children, made), **more)


def conditions(status):
    return {item["type"]: (item["status"], item["reason"]) for item in status["conditions"]}


READY_POD = (True, {"ready": True})


def test_serving():
    status = build_status(situation(pods=[READY_POD]))
    assert conditions(status) == {
        "Ready": ("True", "Serving"),
        "Accepted": ("True", "Valid"),
        "ModelCached": ("True", "Loaded"),
        "WorkloadAvailable": ("True", "MinimumReplicas"),
        "RouteAdmitted": ("True", "Programmed"),
        "Progressing": ("False", "UpToDate"),
    }
    del status["conditions"]
    assert status == {
        "observedGeneration": 1,
        "replicas": 1,
        "readyReplicas": 1,
        "readyDisplay": "1/1",
        "selector": "dedicate.dev/endpoint=chat",
        "route": {"type": "Ingress", "controllerProfile": "Generic"},
        "model": {"name": "org/name", "cacheState": "Loaded"},
        "runtimeImage": "registry/runtime:1",
        "url": "http://192.0.2.1/chat/v1",
        "auth": {"secretName": "chat-api-keys"},
    }


@pytest.mark.parametrize(
    ("subject", "ready", "more"),
    [
        (situation(deployment=None, ingress=None), ("False", "Starting"), {"Progressing": ("True", "RollingOut")}),
        (situation(pods=[(True, {})]), ("False", "Starting"), {}),
        (
            situation(pods=[READY_POD], ingress={}),
            ("False", "NotAdmitted"),
            {"RouteAdmitted": ("False", "NotAdmitted")},
        ),
        (
            situation(pods=[(True, {"container": CRASHED})]),
            ("False", "ModelNotFound"),
            {"WorkloadAvailable": ("False", "ModelNotFound"), "Accepted": ("True", "Valid")},
        ),
        (situation(HUB | {"suspend": True}), ("False", "Suspended"), {"WorkloadAvailable": ("False", "Suspended")}),
        (situation(HUB | {"replicas": 0}), ("False", "ScaledToZero"), {}),
        (
            situation(HUB | {"suspend": True}, pods=[(True, {"ready": True, "deletionTimestamp": "x"})]),
            ("False", "Suspended"),
            {"Progressing": ("True", "Draining")},
        ),
        (
            situation(pods=[(False, {"ready": True}), (True, {"container": CRASHED})]),
            ("True", "ServingPreviousSpec"),
            {"WorkloadAvailable": ("True", "MinimumReplicas")},
        ),
        # Its pods are going: nobody is served by them for long.
        (situation(pods=[(True, {"ready": True, "deletionTimestamp": "x"})]), ("False", "Starting"), {}),
        (
            situation(pods=[READY_POD], deployment=SETTLED | {"observedGeneration": 0}),
            ("True", "Serving"),
            {"Progressing": ("True", "RollingOut")},
        ),
        (
            situation(pods=[READY_POD], refusal=Refusal("PathConflict", "taken")),
            ("False", "PathConflict"),
            {"Accepted": ("False", "PathConflict"), "RouteAdmitted": ("False", "PathConflict")},
        ),
        (
            situation(deployment=None, ingress=None, refusal=Refusal("NameConflict", "taken")),
            ("False", "NameConflict"),
            {"Accepted": ("False", "NameConflict")},
        ),
        (
            situation(HUB | {"route": {"type": "None"}}, pods=[READY_POD], ingress=None),
            ("True", "Serving"),
            {"RouteAdmitted": ("True", "NotRequested")},
        ),
    ],
)
def test_conditions(subject, ready, more):
    found = conditions(build_status(subject))
    assert found["Ready"] == ready
    assert more.items() <= found.items()


def test_missing_secret_holds_back_acceptance():
    container = {"state": {"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}}}
    status = build_status(situation(pods=[(True, {"container": container})]))
    assert conditions(status)["Accepted"] == ("False", "SecretNotFound")
    assert conditions(status)["Ready"] == ("False", "SecretNotFound")


def test_events_speak_for_pods_that_wait():
    container = {"state": {"waiting": {"reason": "ContainerCreating"}}}
    events = {"uid-pod-0": [{"reason": "FailedMount", "message": 'secret "keys" not found'}]}
    status = build_status(situation(pods=[(True, {"container": container})], events=events))
    assert conditions(status)["Accepted"] == ("False", "SecretNotFound")


def test_quota_is_told_by_the_deployment():
    failure = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}
    status = build_status(situation(deployment=SETTLED | {"conditions": [failure]}))
    assert conditions(status)["WorkloadAvailable"] == ("False", "QuotaExceeded")


def starved(old_ready=True, **spec):
    subject = situation(
        HUB | spec, pods=[(False, {"ready": old_ready}), (True, {})], deployment=SETTLED | {"replicas": 2}
    )
    pods = copy.deepcopy(subject.observed.pods)
    pods[1]["status"] = UNSCHEDULABLE
    return Situation(subject.endpoint, DEFAULTS, Observed(subject.observed.children, pods))


def test_rollout_without_a_free_accelerator_is_told_apart():
    assert conditions(build_status(starved()))["Progressing"] == ("True", "AwaitingGPU")
    assert is_awaiting_accelerator(starved())
    assert not is_awaiting_accelerator(starved(old_ready=False))
    assert not is_awaiting_accelerator(starved(accelerator={"count": 0}))
    assert not is_awaiting_accelerator(starved(accelerator={"resourceName": "amd.com/gpu"}))
    assert not is_awaiting_accelerator(situation(pods=[READY_POD]))


@pytest.mark.parametrize(
    ("strategy", "way"),
    [("Auto", "go first, one at a time"), ("RollingUpdate", "Auto would not"), ("Recreate", "waits")],
)
def test_way_of_a_rollout_without_a_free_accelerator_is_told(strategy, way):
    assert way in message(build_status(starved(rollout={"strategy": strategy})), "Progressing")


def message(status, type_):
    return next(item["message"] for item in status["conditions"] if item["type"] == type_)


def test_upgrade_that_pods_have_not_taken_up_is_told():
    status = build_status(situation(pods=[READY_POD], pending_upgrade="the image registry/runtime:2"))
    assert conditions(status)["Progressing"] == ("False", "UpgradeAvailable")
    assert conditions(status)["Ready"] == ("True", "Serving")
    assert "registry/runtime:2" in message(status, "Progressing")
    assert status["runtimeImage"] == "registry/runtime:1"


def test_rollout_past_its_deadline_is_told_with_its_cause():
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    rolling = {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 1, "conditions": [late]}
    spec = HUB | {"rollout": {"progressDeadlineSeconds": 1900}}
    status = build_status(
        situation(spec, pods=[(False, {"ready": True}), (True, {"container": CRASHED})], deployment=rolling)
    )
    assert conditions(status)["Progressing"] == ("False", "ProgressDeadlineExceeded")
    assert "1900 s: ModelNotFound: No model." in message(status, "Progressing")
    assert conditions(status)["Ready"] == ("True", "ServingPreviousSpec")


def test_download_is_not_late():
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    rolling = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "conditions": [late]}
    subject = situation(HUB, pods=[(True, {})], deployment=rolling)
    assert conditions(build_status(subject))["Progressing"] == ("False", "ProgressDeadlineExceeded")
    subject.observed.pods[0]["status"]["initContainerStatuses"] = [{"name": "model-download", "state": {"running": {}}}]
    assert conditions(build_status(subject))["Progressing"] == ("True", "RollingOut")
    assert conditions(build_status(subject))["ModelCached"] == ("False", "Downloading")


@pytest.mark.parametrize(
    ("route", "defaults", "ingress", "url"),
    [
        ({}, {}, {}, None),
        ({}, {}, ADMITTED, "http://192.0.2.1/chat/v1"),
        ({}, {"route_external_port": 8080}, ADMITTED, "http://192.0.2.1:8080/chat/v1"),
        ({}, {"route_external_port": 80}, ADMITTED, "http://192.0.2.1/chat/v1"),
        ({}, {}, {"loadBalancer": {"ingress": [{"hostname": "lb.example"}]}}, "http://lb.example/chat/v1"),
        ({}, {"route_host": "llm.example"}, None, "http://llm.example/chat/v1"),
        ({"host": "own.example"}, {"route_host": "llm.example"}, {}, "http://own.example/chat/v1"),
        ({"host": "own.example", "tls": {}}, {}, {}, "https://own.example/chat/v1"),
        ({"host": "own.example", "tls": {}}, {"route_external_port": 8080}, {}, "https://own.example/chat/v1"),
        ({"host": "own.example", "tls": {}}, {"route_external_tls_port": 8443}, {}, "https://own.example:8443/chat/v1"),
        ({"host": "own.example", "tls": {}}, {"route_external_tls_port": 443}, {}, "https://own.example/chat/v1"),
        # TLS ends in front of the ingress controller.
        ({"host": "own.example"}, {"route_external_scheme": "https"}, {}, "https://own.example/chat/v1"),
        ({"type": "None"}, {"route_host": "llm.example"}, None, "http://chat.team.svc/chat/v1"),
    ],
)
def test_url(route, defaults, ingress, url):
    subject = situation(HUB | {"route": route}, ingress=ingress, defaults=EndpointDefaults(image="i", **defaults))
    assert build_url(subject) == url


def test_loser_of_a_path_has_no_url():
    subject = situation(HUB | {"route": {"host": "h"}}, refusal=Refusal("PathConflict", "taken"))
    assert "url" not in build_status(subject)


def test_secret_is_named_only_once_it_was_made():
    assert "auth" not in build_status(situation(has_keys=False))
    assert "auth" not in build_status(situation(HUB | {"auth": {"mode": "None"}}))
    theirs = situation(HUB | {"auth": {"apiKeysSecretRef": {"name": "theirs"}}})
    assert build_status(theirs)["auth"] == {"secretName": "theirs"}


def test_invalid_specification():
    status = build_invalid_status(4, "spec.x is wrong")
    assert conditions(status) == {"Ready": ("False", "InvalidSpec"), "Accepted": ("False", "InvalidSpec")}
    assert status["observedGeneration"] == 4


def test_a_long_message_is_cut_and_what_to_do_about_it_is_not():
    crash = copy.deepcopy(CRASHED)
    crash["lastState"]["terminated"]["message"] = "x" * 5000
    status = build_status(situation(pods=[(True, {"container": crash})]))
    assert max(len(item["message"]) for item in status["conditions"]) <= MAX_MESSAGE_LENGTH
    assert message(status, "Ready").startswith("xxx")
    assert message(status, "Ready").endswith("private repositories need spec.model.tokenSecretRef")


def test_transition_time_moves_only_with_the_status():
    first = stamp_transitions(build_status(situation()), {}, "T1")
    assert {item["lastTransitionTime"] for item in first["conditions"]} == {"T1"}
    second = stamp_transitions(build_status(situation(pods=[READY_POD])), first, "T2")
    times = {item["type"]: item["lastTransitionTime"] for item in second["conditions"]}
    assert times["Ready"] == times["WorkloadAvailable"] == "T2"
    assert times["Accepted"] == times["RouteAdmitted"] == "T1"
    assert stamp_transitions(build_status(situation(pods=[READY_POD])), second, "T3") == second


def test_news_are_told_once():
    before, after = build_status(situation(ingress={})), build_status(situation(pods=[READY_POD]))
    assert find_news(after, after) == []
    told = [(item["type"], item["reason"]) for item in find_news(after, before)]
    assert told == [
        ("Ready", "Serving"),
        ("ModelCached", "Loaded"),
        ("WorkloadAvailable", "MinimumReplicas"),
        ("RouteAdmitted", "Programmed"),
    ]
    first = [(item["type"], item["reason"]) for item in find_news(before, {})]
    assert ("Ready", "Starting") not in first
    assert ("WorkloadAvailable", "Starting") in first
