from __future__ import annotations

import pytest

from dedicate_operator.identity import Key
from dedicate_operator.kinds import GATEWAY, HTTP_ROUTE, INGRESS_CLASS
from dedicate_operator.store import Store
from dedicate_operator.surroundings import (
    Surroundings,
    with_listed,
    with_resource,
    without_kind,
    without_resource,
)
from tests.unit.operator.builders import DEFAULTS, custom_resource

PUBLIC = Key("infra", "public")


def gateway(name="public", namespace="infra", attached=0, address="192.0.2.1"):
    return {
        "metadata": {"name": name, "namespace": namespace, "resourceVersion": str(attached)},
        "spec": {
            "listeners": [
                {"name": "web", "protocol": "HTTP", "port": 80},
                {"name": "database", "protocol": "TCP", "port": 5432},
            ]
        },
        "status": {"addresses": [{"value": address}], "listeners": [{"name": "web", "attachedRoutes": attached}]},
    }


def ingress_class(name, **annotations):
    return {"metadata": {"name": name, "annotations": annotations}, "spec": {"controller": "x"}}


def test_nothing_is_known_before_it_was_listed():
    known = Surroundings()
    assert known.ingress_classes is None
    assert not known.lacks_gateway(PUBLIC)
    assert known.find_gateway(PUBLIC) is None


def test_gateway_comes_and_goes():
    known = with_listed(Surroundings(), GATEWAY, None, [])
    assert known.lacks_gateway(PUBLIC)
    known = with_resource(known, GATEWAY, None, gateway())
    assert not known.lacks_gateway(PUBLIC)
    assert [listener.name for listener in known.find_gateway(PUBLIC).listeners] == ["web"]
    assert not known.find_gateway(PUBLIC).listeners[0].is_shared
    assert without_resource(known, GATEWAY, None, gateway()).lacks_gateway(PUBLIC)
    assert not without_kind(known, GATEWAY, None).lacks_gateway(PUBLIC)
    assert with_listed(known, GATEWAY, None, [gateway("other")]).lacks_gateway(PUBLIC)


def test_one_namespace_says_nothing_of_another():
    known = with_listed(Surroundings(), GATEWAY, "team", [])
    assert not known.lacks_gateway(PUBLIC)
    assert known.lacks_gateway(Key("team", "public"))
    known = with_listed(known, GATEWAY, "infra", [gateway()])
    assert known.find_gateway(PUBLIC) is not None
    assert known.lacks_gateway(Key("team", "public"))
    assert without_kind(known, GATEWAY, "team").find_gateway(PUBLIC) is not None


def test_class_comes_and_goes():
    known = with_resource(with_listed(Surroundings(), INGRESS_CLASS, None, []), INGRESS_CLASS, None, ingress_class("a"))
    assert set(known.ingress_classes) == {"a"}
    assert without_resource(known, INGRESS_CLASS, None, ingress_class("a")).ingress_classes == {}
    assert without_kind(known, INGRESS_CLASS, None).ingress_classes is None


@pytest.mark.parametrize(("said", "is_default"), [("true", True), ("false", False)])
def test_a_default_class_says_so(said, is_default):
    found = ingress_class("a", **{"ingressclass.kubernetes.io/is-default-class": said})
    known = with_listed(Surroundings(), INGRESS_CLASS, None, [found, ingress_class("b")])
    assert (known.find_default_class() is not None) is is_default


@pytest.mark.parametrize(
    ("type_", "status", "is_working"),
    [
        ("Accepted", "False", False),
        ("Programmed", "False", False),
        ("Programmed", "Unknown", True),
        ("ResolvedRefs", "False", True),
    ],
)
def test_a_gateway_that_its_controller_does_not_run_is_an_obstacle(type_, status, is_working):
    found = gateway()
    found["status"]["conditions"] = [{"type": type_, "status": status, "reason": "Odd"}]
    obstacle = with_listed(Surroundings(), GATEWAY, None, [found]).find_gateway(PUBLIC).obstacle
    assert (obstacle is None) is is_working


def test_news_concern_every_endpoint_and_counting_routes_is_none():
    store = Store(DEFAULTS)
    store.put_endpoint(custom_resource())

    def note(resource):
        return store.note_surroundings(with_resource(store.surroundings, GATEWAY, None, resource))

    assert note(gateway()) == {Key("team", "chat")}
    assert note(gateway(attached=7)) == set()
    assert note(gateway(address="192.0.2.2")) == {Key("team", "chat")}
    store.note_served(HTTP_ROUTE, is_served=True)
    assert store.surroundings.serves_http_routes
    assert note(gateway(attached=8, address="192.0.2.2")) == set()
