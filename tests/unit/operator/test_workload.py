"""What the pods of an endpoint say together, and what is said of its rollout."""

from __future__ import annotations

import pytest

from dedicate_operator.kinds import DEPLOYMENT
from dedicate_operator.manifests import build_deployment
from dedicate_operator.names import TEMPLATE_HASH_ANNOTATION
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.situation import Situation
from dedicate_operator.workload import assess_workload, build_progressing
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource, pod

READY = {"ready": True}
CRASHED = {
    "container": {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 10, "reason": "Error", "message": "No model."}},
    }
}
SETTLED = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}
STARTING = SETTLED | {"availableReplicas": 0}


def situation(spec, *, old=(), new=(), present=None, **status):
    """Return a situation with pods of a former template and of the present one."""
    endpoint = parse_endpoint(custom_resource(spec=HUB | spec))
    manifest = build_deployment(endpoint, DEFAULTS, replicas=present)
    current = manifest["spec"]["template"]["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
    pods = [("former", fields) for fields in old] + [(current, fields) for fields in new]
    made = tuple(pod(template, name=f"pod-{index}", **fields) for index, (template, fields) in enumerate(pods))
    return Situation(endpoint, DEFAULTS, Observed({(DEPLOYMENT, "chat"): as_child(manifest, **status)}, made))


def progressing(subject):
    condition = build_progressing(subject, assess_workload(subject))
    return condition.status, condition.reason, condition.message


def test_pods_are_counted_by_what_they_are():
    workload = assess_workload(situation({}, old=[READY, {}], new=[READY, READY, {}], **STARTING))
    assert (workload.num_pods, workload.num_ready) == (5, 3)
    assert (workload.num_current, workload.num_ready_current) == (3, 2)


def test_what_ails_a_pod_of_the_former_specification_is_not_said_of_the_present_one():
    subject = situation({}, old=[CRASHED], new=[{}], **STARTING)
    subject.observed.pods[0]["status"]["initContainerStatuses"] = [{"name": "model-download", "state": {"running": {}}}]
    workload = assess_workload(subject)
    assert (workload.cause, workload.num_downloading) == (None, 0)
    assert assess_workload(situation({}, new=[CRASHED], **STARTING)).cause.reason == "ModelNotFound"


@pytest.mark.parametrize("spec", [{"suspend": True}, {"replicas": 0}])
def test_what_is_off_drains_while_there_are_pods(spec):
    gone = {"observedGeneration": 1}
    assert progressing(situation(spec, new=[READY], **gone))[:2] == ("True", "Draining")
    assert progressing(situation(spec, **gone))[:2] == ("False", "UpToDate")


@pytest.mark.parametrize(
    ("replicas", "present", "words"), [(1, 1, ""), (2, 1, ""), (1, 3, "; fewer pods, 1, follow when that is done")]
)
def test_only_fewer_pods_are_said_to_follow(replicas, present, words):
    subject = situation({"replicas": replicas}, new=[{}], present=present, **STARTING)
    assert progressing(subject) == ("True", "RollingOut", f"pods of the present specification start{words}")
