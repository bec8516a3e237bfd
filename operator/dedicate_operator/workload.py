"""How an endpoint's pods stand: how many serve, what holds the others back, whether a rollout goes on.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dedicate_operator import names
from dedicate_operator.diagnosis import (
    UNSCHEDULABLE,
    Cause,
    diagnose,
    diagnose_pod,
    diagnose_replica_failure,
    is_downloading,
)
from dedicate_operator.kinds import Json
from dedicate_operator.observed import find_condition, is_terminating
from dedicate_operator.situation import Condition, Situation
from dedicate_operator.spec import Endpoint


@dataclass(frozen=True, slots=True)
class Workload:
    num_pods: int
    num_ready: int
    num_current: int
    num_ready_current: int
    num_downloading: int
    cause: Cause | None
    is_rolling_out: bool


def assess_workload(situation: Situation) -> Workload:
    endpoint = situation.endpoint
    deployment = situation.observed.deployment(endpoint)
    pods = [pod for pod in situation.observed.pods if not is_terminating(pod)]
    current = [pod for pod in pods if deployment is not None and _template_hash(pod) == _desired_hash(deployment)]
    stuck = [pod for pod in current if not is_ready(pod)]
    cause = diagnose(stuck, situation.events, startup_timeout_s=endpoint.spec.startup_timeout_s)
    if cause is None and deployment is not None:
        cause = diagnose_replica_failure(deployment)
    return Workload(
        num_pods=len(pods),
        num_ready=sum(map(is_ready, pods)),
        num_current=len(current),
        num_ready_current=sum(map(is_ready, current)),
        num_downloading=sum(map(is_downloading, current)),
        cause=cause,
        is_rolling_out=_is_rolling_out(deployment),
    )


def is_awaiting_accelerator(situation: Situation) -> bool:
    """Tell whether a rollout cannot go on because older pods hold the devices that the new ones need."""
    workload = assess_workload(situation)
    holds_devices = workload.num_ready > workload.num_ready_current
    return holds_devices and _lacks_accelerator(workload, situation.endpoint)


def is_ready(pod: Json) -> bool:
    condition = find_condition(pod, "Ready")
    return condition is not None and condition.get("status") == "True"


def is_loading(pod: Json, startup_timeout_s: int) -> bool:
    """Tell whether the pod is on its way to its first token, and nothing is known to hold it up."""
    status = pod.get("status") or {}
    if is_terminating(pod) or diagnose_pod(pod, (), startup_timeout_s) is not None:
        return False
    starting = [item for item in status.get("containerStatuses") or [] if not item.get("started")]
    return any("running" in (item.get("state") or {}) for item in [*starting, *status.get("initContainerStatuses", ())])


def is_past_deadline(deployment: Json | None) -> bool:
    """Tell whether the rollout has taken longer than its deadline."""
    condition = find_condition(deployment, "Progressing") if deployment else None
    return condition is not None and condition.get("reason") == "ProgressDeadlineExceeded"


def build_available(situation: Situation, workload: Workload) -> Condition:
    type_, wanted = "WorkloadAvailable", situation.endpoint.spec.wanted_replicas
    if wanted == 0:
        reason = "Suspended" if situation.endpoint.spec.is_suspended else "ScaledToZero"
        field_name = "spec.suspend is true" if situation.endpoint.spec.is_suspended else "spec.replicas is 0"
        return Condition(type_, "False", reason, f"{field_name}: no pod runs")
    if workload.num_ready:
        return Condition(type_, "True", "MinimumReplicas", f"{workload.num_ready} of {wanted} pods ready")
    if workload.num_downloading or (workload.cause is not None and workload.cause.is_download):
        return Condition(type_, "False", "WaitingForModel", "pods wait for their model; see the condition ModelCached")
    if workload.cause is not None:
        return Condition(type_, "False", workload.cause.reason, workload.cause.message)
    return Condition(type_, "False", "Starting", "pods start and load the model")


def build_progressing(situation: Situation, workload: Workload) -> Condition:
    type_, wanted = "Progressing", situation.endpoint.spec.wanted_replicas
    if wanted == 0 and situation.observed.pods:
        return Condition(type_, "True", "Draining", "pods end what they are serving")
    if not workload.is_rolling_out:
        return _build_up_to_date(situation)
    cause, deployment = workload.cause, situation.observed.deployment(situation.endpoint)
    if cause is not None and _lacks_accelerator(workload, situation.endpoint):
        return Condition(type_, "True", "AwaitingGPU", _describe_wait(situation.endpoint, cause))
    what = f"{cause.reason}: {cause.message}" if cause else "pods of the present specification start"
    # A download takes as long as it takes, and is told by itself.
    if is_past_deadline(deployment) and not workload.num_downloading:
        seconds = (deployment or {}).get("spec", {}).get("progressDeadlineSeconds")
        return Condition(type_, "False", "ProgressDeadlineExceeded", f"not done within {seconds} s: {what}")
    if deployment is not None and 0 < wanted < deployment["spec"].get("replicas", 1):
        what += f"; fewer pods, {wanted}, follow when that is done"
    return Condition(type_, "True", "RollingOut", what)


def _describe_wait(endpoint: Endpoint, cause: Cause) -> str:
    resource, strategy = endpoint.spec.accelerator.resource_name, endpoint.spec.rollout_strategy
    way = {
        "Auto": "pods of the previous specification, if any, go first, one at a time",
        "RollingUpdate": "with spec.rollout.strategy RollingUpdate it waits for a free one; Auto would not",
        "Recreate": "it waits for a free one",
    }[strategy]
    return f"no node has a free {resource}, so {way}: {cause.message}"


def _build_up_to_date(situation: Situation) -> Condition:
    pending = situation.pending_upgrade
    if pending is None:
        return Condition("Progressing", "False", "UpToDate", "every pod is of the present specification")
    return Condition(
        "Progressing",
        "False",
        "UpgradeAvailable",
        "every pod is of the present specification; this version of the operator would change "
        f"{pending} with the next change of it, or at once with spec.runtime.upgradePolicy OnOperatorUpgrade",
    )


def _lacks_accelerator(workload: Workload, endpoint: Endpoint) -> bool:
    cause, accelerator = workload.cause, endpoint.spec.accelerator
    if cause is None or not accelerator.count:
        return False
    return cause.reason == UNSCHEDULABLE and f"Insufficient {accelerator.resource_name}" in cause.message


def _is_rolling_out(deployment: Json | None) -> bool:
    if deployment is None:
        return True
    status = deployment.get("status") or {}
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return True
    wanted: int = deployment["spec"].get("replicas", 1)
    num_updated, num_total = status.get("updatedReplicas", 0), status.get("replicas", 0)
    return bool(num_updated < wanted or num_total > num_updated or status.get("availableReplicas", 0) < wanted)


def _template_hash(resource: Mapping[str, Any]) -> str | None:
    value: str | None = (resource["metadata"].get("annotations") or {}).get(names.TEMPLATE_HASH_ANNOTATION)
    return value


def _desired_hash(deployment: Json) -> str | None:
    return _template_hash(deployment["spec"]["template"])
