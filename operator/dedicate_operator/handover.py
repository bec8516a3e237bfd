"""How a route goes from one kind to the other: the new one stands before the old one goes.

Pure; the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dedicate_operator.kinds import HTTP_ROUTE, INGRESS, Json, Kind
from dedicate_operator.placement import Placement
from dedicate_operator.routing import build_routed, place
from dedicate_operator.situation import Situation

# A controller says that it took a route up some moments before its proxies have it; Traefik gathers changes for 2 s.
OVERLAP_S = 10.0

_KINDS: dict[str, Kind] = {"Ingress": INGRESS, "HTTPRoute": HTTP_ROUTE}


@dataclass(frozen=True, slots=True)
class Handover:
    """What is to become of the routes.

    Attributes:
        placement: of the route that is to stand; None if none is to, or none of its kind can.
        kept: kinds of routes that stay although they are not asked for any more.
        again_s: when to look again even if no event comes.
    """

    placement: Placement | None
    kept: frozenset[Kind] = frozenset()
    again_s: float | None = None


def plan_handover(situation: Situation, *, is_routed: bool, now: datetime) -> Handover:
    """Plan for the route asked for, and for the one of the other kind that may still stand.

    The old one stays until the new one leads here, as long as it leads from the very path that is the endpoint's own.
    """
    placement = place(situation)
    wanted = _KINDS.get(placement.type)
    if not is_routed or wanted is None:
        return Handover(None)
    can_stand = placement.type == "Ingress" or (situation.surroundings.serves_http_routes and placement.parents)
    standing = placement if can_stand else None
    old_kind = HTTP_ROUTE if wanted == INGRESS else INGRESS
    old = situation.observed.children.get((old_kind, situation.endpoint.key.name))
    if old is None or _read_host(old) != placement.host:
        return Handover(standing)
    if build_routed(situation).is_false:
        return Handover(standing, frozenset({old_kind}))
    new = situation.observed.children[wanted, situation.endpoint.key.name]
    left_s = OVERLAP_S - (now - datetime.fromisoformat(new["metadata"]["creationTimestamp"])).total_seconds()
    if left_s <= 0:
        return Handover(standing)
    return Handover(standing, frozenset({old_kind}), again_s=min(left_s, OVERLAP_S))


def _read_host(route: Json) -> str | None:
    spec: Json = route.get("spec") or {}
    names = spec.get("hostnames") or [rule.get("host") for rule in spec.get("rules") or []]
    host: str | None = names[0] if names else None
    return host
