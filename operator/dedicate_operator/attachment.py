"""Whether Gateways have taken an HTTPRoute up, and where clients reach it through them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dedicate_operator.identity import Key
from dedicate_operator.kinds import Json
from dedicate_operator.placement import Placement
from dedicate_operator.routes import ParentRef
from dedicate_operator.situation import Refusal
from dedicate_operator.surroundings import Gateway, Listener, Surroundings


@dataclass(frozen=True, slots=True)
class Attachment:
    """One Gateway's answer to a route; it leads there unless it is refused."""

    parent: ParentRef
    gateway: Gateway | None
    refusal: Refusal | None = None


def assess_attachments(
    placement: Placement, http_route: Json | None, surroundings: Surroundings
) -> tuple[Attachment, ...]:
    """Return the answer of each Gateway that the route asks for."""
    return tuple(_assess(parent, http_route or {}, surroundings) for parent in placement.parents)


def _assess(parent: ParentRef, http_route: Json, surroundings: Surroundings) -> Attachment:
    key = Key(parent.namespace or "", parent.name)
    gateway = surroundings.find_gateway(key)
    if surroundings.lacks_gateway(key):
        return Attachment(parent, gateway, Refusal("GatewayNotFound", f"Gateway {key} does not exist"))
    complaint = _find_complaint(parent, http_route) or (gateway and gateway.obstacle)
    refusal = Refusal("NotAdmitted", f"Gateway {key} {complaint}") if complaint else None
    return Attachment(parent, gateway, refusal)


def _find_complaint(parent: ParentRef, http_route: Json) -> str | None:
    """Return what is said against the route at one Gateway; of several controllers one that takes it up will do."""
    entries = [entry for entry in _read_entries(http_route) if _is_about(entry, parent, http_route)]
    if not entries:
        return "has not answered"
    complaints = [_read_complaint(entry, http_route) for entry in entries]
    return None if None in complaints else complaints[0]


def _read_entries(http_route: Json) -> list[Json]:
    entries: list[Json] = (http_route.get("status") or {}).get("parents") or []
    return entries


def _is_about(entry: Json, parent: ParentRef, http_route: Json) -> bool:
    reference = entry.get("parentRef") or {}
    namespace = reference.get("namespace") or http_route["metadata"]["namespace"]
    answered = ParentRef(reference.get("name", ""), namespace, reference.get("sectionName"), reference.get("port"))
    return answered == parent


def _read_complaint(entry: Json, http_route: Json) -> str | None:
    """Return what one controller says against the route as it is now, None if nothing."""
    generation = http_route["metadata"].get("generation", 0)
    conditions: Mapping[str, Json] = {item.get("type", ""): item for item in entry.get("conditions") or []}
    accepted = conditions.get("Accepted")
    if accepted is None or accepted.get("observedGeneration", generation) < generation:
        return "has not looked at the present route yet"
    for condition in (accepted, conditions.get("ResolvedRefs")):
        if condition is not None and condition.get("status") != "True":
            said = f"{condition.get('reason')}: {condition.get('message', '')}".rstrip(": ")
            return f"does not take the route up ({said})"
    return None


def select_listener(attachment: Attachment, placement: Placement, namespace: str) -> Listener | None:
    """Return the listener that clients are sent to, one with TLS if there is one; None if nobody knows."""
    parent, gateway = attachment.parent, attachment.gateway
    candidates = [
        listener
        for listener in (gateway.listeners if gateway else ())
        if parent.section_name in {None, listener.name}
        and parent.port in {None, listener.port}
        and (listener.is_shared or (gateway is not None and gateway.key.namespace == namespace))
        and _is_for(listener, placement.host)
    ]
    return min(candidates, key=lambda listener: not listener.is_tls, default=None)


def _is_for(listener: Listener, host: str | None) -> bool:
    if host is None or listener.hostname is None:
        return True
    if listener.hostname.startswith("*."):
        return host.endswith(listener.hostname[1:])
    return host == listener.hostname
