"""Replicas: what is wanted within the bounds, and never fewer while pods load."""

from __future__ import annotations

import pytest

from dedicate_operator.kinds import DEPLOYMENT
from dedicate_operator.manifests import build_deployment
from dedicate_operator.names import TEMPLATE_HASH_ANNOTATION
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.scaling import plan_replicas
from dedicate_operator.situation import Situation
from dedicate_operator.status import build_status
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource, pod

AUTOSCALING = {"minReplicas": 2, "maxReplicas": 4, "metric": {"targetValue": 8}}
LOADING = {"container": {"started": False, "state": {"running": {}}}}
PULLING = {"container": {"started": False, "state": {"waiting": {"reason": "ContainerCreating"}}}}
CRASHED = {
    "container": {
        "started": False,
        "state": {"running": {}},
        "lastState": {"terminated": {"exitCode": 15, "reason": "Error", "message": "No room."}},
    }
}
SETTLED = {"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}
ROLLING = {"observedGeneration": 1, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3}
LATE = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}


def situation(spec, *pods, present=3, **status):
    """Return a situation with a Deployment of `present` replicas; a pod may be a pair ("old", pod)."""
    endpoint = parse_endpoint(custom_resource(spec=HUB | spec))
    manifest = build_deployment(endpoint, DEFAULTS, replicas=present)
    current = manifest["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    made = []
    for index, fields in enumerate(pods):
        is_old = isinstance(fields, tuple)
        made.append(pod("old" if is_old else current, name=f"pod-{index}", **(fields[1] if is_old else fields)))
    children = {(DEPLOYMENT, "chat"): as_child(manifest, **(status or SETTLED))}
    return Situation(endpoint, DEFAULTS, Observed(children, tuple(made)))


READY = {"ready": True}
OLD = ("old", READY)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ({}, 1),
        ({"replicas": 3}, 3),
        ({"replicas": 1, "autoscaling": AUTOSCALING}, 2),
        ({"replicas": 3, "autoscaling": AUTOSCALING}, 3),
        ({"replicas": 9, "autoscaling": AUTOSCALING}, 4),
        ({"replicas": 0, "autoscaling": AUTOSCALING}, 0),
        ({"replicas": 3, "suspend": True, "autoscaling": AUTOSCALING}, 0),
    ],
)
def test_wanted_replicas_are_within_the_bounds(spec, wanted):
    endpoint = parse_endpoint(custom_resource(spec=HUB | spec))
    assert endpoint.spec.wanted_replicas == wanted
    assert plan_replicas(Situation(endpoint, DEFAULTS, Observed())) == wanted


@pytest.mark.parametrize(
    ("pods", "status", "planned"),
    [
        ([READY, READY, READY], SETTLED, 1),
        ([READY, READY, LOADING], SETTLED, 3),
        ([READY, READY, PULLING], SETTLED, 1),
        ([READY, READY, CRASHED], SETTLED, 1),
        ([OLD, OLD, OLD], ROLLING, 3),
        ([OLD, OLD, OLD, PULLING], ROLLING, 3),
        ([READY, READY, PULLING], ROLLING, 1),
        ([OLD, OLD, OLD, LOADING], ROLLING, 3),
        ([OLD, OLD, OLD, CRASHED], ROLLING, 1),
        ([OLD, OLD, OLD, PULLING], ROLLING | {"conditions": [LATE]}, 1),
        ([READY, ("old", READY | {"deletionTimestamp": "x"})], SETTLED, 1),
        ([READY, LOADING | {"deletionTimestamp": "x"}], SETTLED, 1),
    ],
)
def test_promise_07_replicas_never_fall_while_pods_load(pods, status, planned):
    assert plan_replicas(situation({"replicas": 1}, *pods, **status)) == planned


def test_an_init_container_that_runs_is_loading():
    subject = situation({"replicas": 1}, PULLING)
    subject.observed.pods[0]["status"]["initContainerStatuses"] = [{"name": "download", "state": {"running": {}}}]
    assert plan_replicas(subject) == 3


@pytest.mark.parametrize("loads", [True, False])
def test_replicas_that_somebody_added_to_the_deployment_are_taken_back_at_once(loads):
    subject = situation({"replicas": 3}, READY, LOADING if loads else READY)
    subject.observed.deployment(subject.endpoint)["spec"]["replicas"] = 7
    assert plan_replicas(subject) == 3


def test_replicas_that_somebody_took_from_the_deployment_are_not_held_on_to():
    subject = situation({"replicas": 2}, READY, LOADING)
    subject.observed.deployment(subject.endpoint)["spec"]["replicas"] = 1
    assert plan_replicas(subject) == 2


@pytest.mark.parametrize("spec", [{"suspend": True}, {"replicas": 0}])
def test_off_is_off_at_once(spec):
    assert plan_replicas(situation(spec, LOADING, LOADING, LOADING)) == 0


@pytest.mark.parametrize("wanted", [3, 4])
def test_replicas_rise_at_any_time(wanted):
    assert plan_replicas(situation({"replicas": wanted}, LOADING, **ROLLING)) == wanted


def test_what_is_held_back_is_told():
    status = build_status(situation({"replicas": 1}, READY, READY, LOADING, **SETTLED | {"availableReplicas": 2}))
    assert status["readyDisplay"] == "2/1"
    (progressing,) = (item for item in status["conditions"] if item["type"] == "Progressing")
    assert "fewer pods, 1, follow" in progressing["message"]
