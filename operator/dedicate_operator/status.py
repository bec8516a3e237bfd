"""The status of an endpoint, computed afresh from what is observed.

Pure: reads no clock. `stamp_transitions` is given the time by its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dedicate_operator import names
from dedicate_operator.advice import MAX_ADVICE_LENGTH, advise
from dedicate_operator.autoscaler import build_autoscaler_active
from dedicate_operator.caching import build_cached, build_model_status
from dedicate_operator.diagnosis import SECRET_NOT_FOUND
from dedicate_operator.kinds import Json
from dedicate_operator.rendering import find_image
from dedicate_operator.routing import build_route_status, build_routed, build_url
from dedicate_operator.situation import Condition, Situation
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import select_image, select_keys_secret
from dedicate_operator.workload import Workload, assess_workload, build_available, build_progressing

MAX_MESSAGE_LENGTH = 1024


def build_status(situation: Situation) -> Json:
    """Return the whole status, its conditions without times."""
    endpoint = situation.endpoint
    workload = assess_workload(situation)
    url = build_url(situation)
    cached = build_cached(situation, workload)
    secret = select_keys_secret(endpoint) if situation.has_keys else None
    status: Json = {
        "observedGeneration": endpoint.generation,
        "replicas": workload.num_pods,
        "readyReplicas": workload.num_ready,
        "readyDisplay": f"{workload.num_ready}/{endpoint.spec.wanted_replicas}",
        "selector": names.format_selector(endpoint.key.name),
        "route": build_route_status(situation),
        "model": build_model_status(situation, cached),
        "runtimeImage": _find_runtime_image(situation),
        "conditions": _format(
            [_advise(condition, endpoint) for condition in _build_conditions(situation, workload, cached)],
            endpoint.generation,
        ),
    }
    return status | ({"url": url} if url else {}) | ({"auth": {"secretName": secret}} if secret else {})


def build_invalid_status(generation: int, message: str) -> Json:
    """Return the status of an endpoint whose specification this operator cannot read."""
    conditions = [
        Condition("Ready", "False", "InvalidSpec", message),
        Condition("Accepted", "False", "InvalidSpec", message),
    ]
    return {"observedGeneration": generation, "conditions": _format(conditions, generation)}


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


def _find_runtime_image(situation: Situation) -> str:
    """Return the image that the pods are made of, which need not be the one that a new template would have."""
    deployment = situation.observed.deployment(situation.endpoint) or {}
    image = find_image(deployment.get("spec", {}).get("template") or {})
    return image or select_image(situation.endpoint.spec, situation.defaults)


def _advise(condition: Condition, endpoint: Endpoint) -> Condition:
    """Say what to do, where a condition is not met; a long message is cut before that and not after it."""
    if not condition.is_false:
        return condition
    message = condition.message[: MAX_MESSAGE_LENGTH - MAX_ADVICE_LENGTH - 2]
    return replace(condition, message=advise(endpoint, condition.reason, message))


def _build_conditions(situation: Situation, workload: Workload, cached: Condition) -> list[Condition]:
    accepted = _build_accepted(situation, workload)
    available = build_available(situation, workload)
    routed = build_routed(situation)
    progressing = build_progressing(situation, workload)
    scaled = build_autoscaler_active(situation)
    ready = _build_ready((accepted, cached, available, routed), available, routed, workload)
    return [ready, accepted, cached, available, routed, progressing, *([scaled] if scaled else [])]


def _build_ready(needed: Sequence[Condition], available: Condition, routed: Condition, workload: Workload) -> Condition:
    """Say whether requests are answered: a pod is ready, of whatever template, and the route leads to it."""
    if available.is_false or routed.is_false:
        holding_back = next(condition for condition in needed if condition.is_false)
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


def _build_accepted(situation: Situation, workload: Workload) -> Condition:
    if situation.refusal is not None:
        return Condition("Accepted", "False", situation.refusal.reason, situation.refusal.message)
    if workload.cause is not None and workload.cause.reason == SECRET_NOT_FOUND:
        return Condition("Accepted", "False", SECRET_NOT_FOUND, workload.cause.message)
    return Condition("Accepted", "True", "Valid", "the specification is valid")


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
