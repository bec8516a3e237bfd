"""A route that changes its kind: the new one stands before the old one goes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dedicate_operator.handover import OVERLAP_S, plan_handover
from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import HTTP_ROUTE, INGRESS
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import Placement, place_route
from dedicate_operator.routes import ParentRef
from dedicate_operator.situation import Situation
from dedicate_operator.surroundings import Surroundings
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource

MADE = datetime(2026, 1, 1, tzinfo=UTC)
PARENT = {"namespace": "team", "name": "public"}
TO_GATEWAY = {"parentRefs": [{"name": "public"}], "host": "h.example"}
TO_INGRESS = {"type": "Ingress", "host": "h.example"}
ACCEPTED = {"parents": [{"parentRef": PARENT, "conditions": [{"type": "Accepted", "status": "True"}]}]}
ADDRESSED = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}


def plan(route, *, http_route=None, ingress=None, old_host="h.example", api=True, is_routed=True, age_s=0.0):
    """Plan for an endpoint with these children, given by their statuses; the new one is `age_s` old."""
    endpoint = parse_endpoint(custom_resource(spec=HUB | {"route": route}))
    known = Surroundings(serves_http_routes=api)
    wanted = place_route(endpoint, DEFAULTS, known)
    children = {}
    if http_route is not None:
        host = wanted.host if wanted.type == "HTTPRoute" else old_host
        manifest = build_http_route(endpoint, Placement("HTTPRoute", host=host, parents=(ParentRef("public", "team"),)))
        children[HTTP_ROUTE, "chat"] = as_child(manifest, **http_route)
    if ingress is not None:
        host = wanted.host if wanted.type == "Ingress" else old_host
        children[INGRESS, "chat"] = as_child(build_ingress(endpoint, Placement("Ingress", host=host)), **ingress)
    for child in children.values():
        child["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    situation = Situation(endpoint, DEFAULTS, Observed(children), surroundings=known)
    return plan_handover(situation, is_routed=is_routed, now=MADE + timedelta(seconds=age_s))


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"route": TO_GATEWAY, "ingress": ADDRESSED}, {INGRESS}),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "http_route": {}}, {INGRESS}),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "http_route": ACCEPTED}, {INGRESS}),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "http_route": ACCEPTED, "age_s": OVERLAP_S}, set()),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "http_route": {}, "age_s": 3600}, {INGRESS}),
        ({"route": TO_INGRESS, "http_route": ACCEPTED}, {HTTP_ROUTE}),
        ({"route": TO_INGRESS, "http_route": ACCEPTED, "ingress": {}, "age_s": 3600}, {HTTP_ROUTE}),
        ({"route": TO_INGRESS, "http_route": ACCEPTED, "ingress": ADDRESSED, "age_s": OVERLAP_S}, set()),
        # A Gateway API that is not there never leads here.
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "api": False}, {INGRESS}),
        # Another path: it may by now be somebody else's.
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "old_host": "other.example"}, set()),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "old_host": None}, set()),
        ({"route": TO_GATEWAY, "ingress": ADDRESSED, "is_routed": False}, set()),
        ({"route": {"type": "None"}, "ingress": ADDRESSED, "is_routed": False}, set()),
    ],
)
def test_old_route_stays_until_the_new_one_leads_here(arguments, kept):
    assert plan(**arguments).kept == kept


def test_it_looks_again_when_the_overlap_ends():
    assert plan(TO_GATEWAY, ingress=ADDRESSED, http_route=ACCEPTED, age_s=4).again_s == OVERLAP_S - 4
    # A clock that is behind that of the API server does not make it longer.
    assert plan(TO_GATEWAY, ingress=ADDRESSED, http_route=ACCEPTED, age_s=-60).again_s == OVERLAP_S
    assert plan(TO_GATEWAY, http_route=ACCEPTED).again_s is None


def test_no_http_route_is_written_where_it_cannot_stand():
    assert plan(TO_GATEWAY, api=False).placement is None
    assert plan({"type": "HTTPRoute"}).placement is None
    assert plan(TO_GATEWAY).placement.type == "HTTPRoute"
    assert plan(TO_INGRESS, api=False).placement.type == "Ingress"
    assert plan(TO_INGRESS, is_routed=False).placement is None
