"""What one Gateway says of a route, and which of its listeners clients are sent to; test_routing.py has the whole."""

from __future__ import annotations

import pytest

from dedicate_operator.attachment import Attachment, assess_attachments, select_listener
from dedicate_operator.identity import Key
from dedicate_operator.placement import Placement
from dedicate_operator.routes import ParentRef
from dedicate_operator.surroundings import Gateway, Listener, Surroundings

PARENT = ParentRef("public", "infra")
OPEN = Listener("web", is_tls=False, port=80, hostname=None, is_shared=True)
OWN = Listener("websecure", is_tls=True, port=443, hostname=None, is_shared=False)


def complain(*conditions, **reference):
    """Return what is said against a route in `infra`, None if nothing."""
    entry = {"parentRef": {"name": "public", **reference}, "conditions": list(conditions)}
    route = {"metadata": {"namespace": "infra", "generation": 1}, "status": {"parents": [entry]}}
    (attachment,) = assess_attachments(Placement("HTTPRoute", parents=(PARENT,)), route, Surroundings())
    return attachment.refusal and attachment.refusal.message


def condition(status, type_="Accepted"):
    return {"type": type_, "status": status, "reason": "Pending", "observedGeneration": 1}


@pytest.mark.parametrize(("namespace", "is_heard"), [("infra", True), (None, True), ("team", False)])
def test_an_answer_without_a_namespace_is_about_a_gateway_beside_the_route(namespace, is_heard):
    said = complain(condition("True"), namespace=namespace)
    assert said == (None if is_heard else "Gateway infra/public has not answered")


@pytest.mark.parametrize("type_", ["Accepted", "ResolvedRefs"])
def test_only_a_clear_yes_takes_the_route_up(type_):
    others = [] if type_ == "Accepted" else [condition("True")]
    assert "does not take the route up (Pending)" in complain(*others, condition("Unknown", type_))


@pytest.mark.parametrize(("namespace", "listener"), [("infra", OWN), ("team", OPEN)])
def test_a_listener_for_its_own_namespace_is_one_for_endpoints_there(namespace, listener):
    gateway = Gateway(Key("infra", "public"), (OPEN, OWN), "192.0.2.9", None)
    assert select_listener(Attachment(PARENT, gateway), Placement("HTTPRoute"), namespace) == listener
