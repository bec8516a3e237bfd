"""The status of an endpoint, computed afresh from what is observed.

Pure: reads no clock. `stamp_transitions` is given the time by its caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dedicate_operator import names
from dedicate_operator.diagnosis import (
    SECRET_NOT_FOUND,
    UNSCHEDULABLE,
    Cause,
    diagnose,
    diagnose_replica_failure,
)
from dedicate_operator.kinds import Json
from dedicate_operator.observed import Observed, find_condition, is_terminating
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import select_image, select_keys_secret

ConditionStatus = Literal["True", "False", "Unknown"]
MAX_MESSAGE_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: ConditionStatus
    reason: str
    message: str

    @property
    def is_false(self) -> bool:
        return self.status == "False"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an endpoint cannot be accepted although its specification is valid by itself."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a status is computed from.

    Attributes:
        refusal: set if the endpoint is not served as asked.
        events: Warning Events of pods that wait for volumes, by the pod's uid.
        has_keys: whether the Secret with the API keys was made.
    """

    endpoint: Endpoint
    defaults: EndpointDefaults
    observed: Observed
    refusal: Refusal | None = None
    events: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    has_keys: bool = True


def build_status(situation: Situation) -> Json:
    """Return the whole status, its conditions without times."""
    endpoint, defaults = situation.endpoint, situation.defaults
    workload = _assess_workload(situation)
    url = build_url(situation)
    secret = select_keys_secret(endpoint) if situation.has_keys else None
    status: Json = {
        "observedGeneration": endpoint.generation,
        "replicas": workload.num_pods,
        "readyReplicas": workload.num_ready,
        "readyDisplay": f"{workload.num_ready}/{endpoint.spec.wanted_replicas}",
        "selector": names.format_selector(endpoint.key.name),
        "model": {"name": endpoint.spec.model.served_names[0]},
        "runtimeImage": select_image(endpoint.spec, defaults),
        "conditions": _format(_build_conditions(situation, workload), endpoint.generation),
    }
    return status | ({"url": url} if url else {}) | ({"auth": {"secretName": secret}} if secret else {})


def build_invalid_status(generation: int, message: str) -> Json:
    """Return the status of an endpoint whose specification this operator cannot read."""
    conditions = [
        Condition("Ready", "False", "InvalidSpec", message),
        Condition("Accepted", "False", "InvalidSpec", message),
    ]
    return {"observedGeneration": generation, "conditions": _format(conditions, generation)}


def build_url(situation: Situation) -> str | None:
    """Return the base URL for OpenAI clients, None while nobody knows it."""
    endpoint, defaults = situation.endpoint, situation.defaults
    route = endpoint.spec.route
    if route.type == "None":
        return f"http://{endpoint.key.name}.{endpoint.key.namespace}.svc/{endpoint.spec.dedicate}/v1"
    if situation.refusal is not None and situation.refusal.reason == "PathConflict":
        return None
    host = route.host or defaults.route_host or _find_address(situation.observed.ingress(endpoint))
    if host is None:
        return None
    scheme, standard_port = ("https", 443) if route.is_tls else ("http", 80)
    port = defaults.route_external_port
    suffix = f":{port}" if port not in {None, standard_port} else ""
    return f"{scheme}://{host}{suffix}/{endpoint.spec.dedicate}/v1"


def stamp_transitions(status: Json, previous: Json, now: str) -> Json:
    """Return the status with a lastTransitionTime in each condition, `now` only where its status flipped."""
    before = {condition["type"]: condition for condition in previous.get("conditions") or []}

    def stamp(condition: Json) -> Json:
        old = before.get(condition["type"], {})
        is_same = old.get("status") == condition["status"] and old.get("lastTransitionTime")
        return {**condition, "lastTransitionTime": old["lastTransitionTime"] if is_same else now}

    return {**status, "conditions": [stamp(condition) for condition in status["conditions"]]}


def find_news(status: Json, previous: Json) -> list[Json]:
    """Return the conditions whose status or reason changed, for Events; Ready only where it says something new."""
    before = {
        condition["type"]: (condition.get("status"), condition.get("reason"))
        for condition in previous.get("conditions") or []
    }
    changed = [
        condition
        for condition in status["conditions"]
        if before.get(condition["type"]) != (condition["status"], condition["reason"])
    ]
    told = {condition["reason"] for condition in changed if condition["type"] != "Ready"}
    return [item for item in changed if item["type"] != "Ready" or item["reason"] not in told]


@dataclass(frozen=True, slots=True)
class _Workload:
    num_pods: int
    num_ready: int
    num_ready_current: int
    cause: Cause | None
    is_rolling_out: bool


def _assess_workload(situation: Situation) -> _Workload:
    endpoint = situation.endpoint
    deployment = situation.observed.deployment(endpoint)
    pods = [pod for pod in situation.observed.pods if not is_terminating(pod)]
    current = [pod for pod in pods if deployment is not None and _template_hash(pod) == _desired_hash(deployment)]
    stuck = [pod for pod in current if not is_ready(pod)]
    cause = diagnose(stuck, situation.events, startup_timeout_s=endpoint.spec.startup_timeout_s)
    if cause is None and deployment is not None:
        cause = diagnose_replica_failure(deployment)
    return _Workload(
        num_pods=len(pods),
        num_ready=sum(map(is_ready, pods)),
        num_ready_current=sum(map(is_ready, current)),
        cause=cause,
        is_rolling_out=_is_rolling_out(deployment),
    )


def is_awaiting_accelerator(situation: Situation) -> bool:
    """Tell whether a rollout cannot go on because older pods hold the devices that the new ones need."""
    workload = _assess_workload(situation)
    holds_devices = workload.num_ready > workload.num_ready_current
    return holds_devices and _lacks_accelerator(workload, situation.endpoint)


def is_ready(pod: Json) -> bool:
    condition = find_condition(pod, "Ready")
    return condition is not None and condition.get("status") == "True"


def _build_conditions(situation: Situation, workload: _Workload) -> list[Condition]:
    accepted = _build_accepted(situation, workload)
    available = _build_available(situation, workload)
    routed = _build_routed(situation)
    progressing = _build_progressing(situation, workload)
    return [_build_ready(accepted, available, routed, workload), accepted, available, routed, progressing]


def _build_ready(accepted: Condition, available: Condition, routed: Condition, workload: _Workload) -> Condition:
    """Say whether requests are answered: a pod is ready, of whatever template, and the route leads to it."""
    if available.is_false or routed.is_false:
        holding_back = next(condition for condition in (accepted, available, routed) if condition.is_false)
        return Condition("Ready", "False", holding_back.reason, holding_back.message)
    if workload.num_ready_current:
        return Condition("Ready", "True", "Serving", available.message)
    why = f": {workload.cause.reason}: {workload.cause.message}" if workload.cause else ""
    return Condition(
        "Ready",
        "True",
        "ServingPreviousSpec",
        f"pods of the previous specification serve, the new ones do not yet{why}",
    )


def _build_accepted(situation: Situation, workload: _Workload) -> Condition:
    if situation.refusal is not None:
        return Condition("Accepted", "False", situation.refusal.reason, situation.refusal.message)
    if workload.cause is not None and workload.cause.reason == SECRET_NOT_FOUND:
        return Condition("Accepted", "False", SECRET_NOT_FOUND, workload.cause.message)
    return Condition("Accepted", "True", "Valid", "the specification is valid")


def _build_available(situation: Situation, workload: _Workload) -> Condition:
    type_, wanted = "WorkloadAvailable", situation.endpoint.spec.wanted_replicas
    if wanted == 0:
        reason = "Suspended" if situation.endpoint.spec.is_suspended else "ScaledToZero"
        field_name = "spec.suspend is true" if situation.endpoint.spec.is_suspended else "spec.replicas is 0"
        return Condition(type_, "False", reason, f"{field_name}: no pod runs")
    if workload.num_ready:
        return Condition(type_, "True", "MinimumReplicas", f"{workload.num_ready} of {wanted} pods ready")
    if workload.cause is not None:
        return Condition(type_, "False", workload.cause.reason, workload.cause.message)
    return Condition(type_, "False", "Starting", "pods start and load the model")


def _build_routed(situation: Situation) -> Condition:
    type_, endpoint = "RouteAdmitted", situation.endpoint
    if endpoint.spec.route.type == "None":
        return Condition(type_, "True", "NotRequested", "spec.route.type is None: reached within the cluster only")
    if situation.refusal is not None and situation.refusal.reason == "PathConflict":
        return Condition(type_, "False", situation.refusal.reason, situation.refusal.message)
    ingress = situation.observed.ingress(endpoint)
    if _find_address(ingress) is not None:
        return Condition(type_, "True", "Programmed", "the ingress controller gave the Ingress an address")
    class_name = ((ingress or {}).get("spec") or {}).get("ingressClassName")
    of_class = f"of class {class_name}" if class_name else "of the cluster's default class"
    return Condition(type_, "False", "NotAdmitted", f"no ingress controller {of_class} gave the Ingress an address")


def _build_progressing(situation: Situation, workload: _Workload) -> Condition:
    type_, wanted = "Progressing", situation.endpoint.spec.wanted_replicas
    if wanted == 0 and situation.observed.pods:
        return Condition(type_, "True", "Draining", "pods end what they are serving")
    if not workload.is_rolling_out:
        return Condition(type_, "False", "UpToDate", "every pod is of the present specification")
    cause = workload.cause
    if cause is not None and _lacks_accelerator(workload, situation.endpoint):
        resource = situation.endpoint.spec.accelerator.resource_name
        return Condition(type_, "True", "AwaitingGPU", f"no node has a free {resource}: {cause.message}")
    if cause is not None:
        return Condition(type_, "True", "RollingOut", f"{cause.reason}: {cause.message}")
    return Condition(type_, "True", "RollingOut", "pods of the present specification start")


def _lacks_accelerator(workload: _Workload, endpoint: Endpoint) -> bool:
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


def _find_address(ingress: Json | None) -> str | None:
    balancer = ((ingress or {}).get("status") or {}).get("loadBalancer") or {}
    for entry in balancer.get("ingress") or []:
        address: str | None = entry.get("hostname") or entry.get("ip")
        if address:
            return address
    return None


def _format(conditions: Sequence[Condition], generation: int) -> list[Json]:
    return [
        {
            "type": condition.type,
            "status": condition.status,
            "reason": condition.reason,
            "message": condition.message[:MAX_MESSAGE_LENGTH],
            "observedGeneration": generation,
        }
        for condition in conditions
    ]
