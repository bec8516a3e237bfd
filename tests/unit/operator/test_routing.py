"""What is said of a route: whether it leads here, and by which URL."""

from __future__ import annotations

import pytest

from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import GATEWAY, HTTP_ROUTE, INGRESS
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import place_route
from dedicate_operator.routes import ParentRef
from dedicate_operator.routing import build_route_status, build_routed, build_url
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.situation import Refusal, Situation
from dedicate_operator.surroundings import IngressClass, Surroundings, with_listed
from tests.unit.operator.builders import HUB, as_child, custom_resource

ADMITTED = {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}
PARENT = {"kind": "Gateway", "group": "gateway.networking.k8s.io", "namespace": "infra", "name": "public"}
ROUTE = {"parentRefs": [{"namespace": "infra", "name": "public"}]}
HTTP = {"name": "web", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}}
HTTPS = HTTP | {"name": "websecure", "protocol": "HTTPS", "port": 443}


def gateway(*listeners, name="public", namespace="infra", addresses=("192.0.2.9",), conditions=()):
    return {
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"listeners": list(listeners)},
        "status": {"addresses": [{"value": value} for value in addresses], "conditions": list(conditions)},
    }


def know(*gateways, api=True, namespace=None):
    return with_listed(Surroundings(serves_http_routes=api), GATEWAY, namespace, gateways)


def answer(accepted="True", reason="Accepted", message="", *, resolved="True", generation=1, **reference):
    return {
        "parentRef": PARENT | reference,
        "controllerName": "example.com/gateway",
        "conditions": [
            {
                "type": "Accepted",
                "status": accepted,
                "reason": reason,
                "message": message,
                "observedGeneration": generation,
            },
            {"type": "ResolvedRefs", "status": resolved, "reason": "BackendNotFound", "message": "no Service"},
        ],
    }


def situation(route, *answers, surroundings=None, ingress=None, refusal=None, **defaults):
    endpoint = parse_endpoint(custom_resource(spec=HUB | {"route": route}))
    known, settings = surroundings or know(gateway(HTTP)), EndpointDefaults(image="i", **defaults)
    placement, children = place_route(endpoint, settings, known), {}
    if answers:
        children[HTTP_ROUTE, "chat"] = as_child(build_http_route(endpoint, placement), parents=list(answers))
    if ingress is not None:
        child = as_child(build_ingress(endpoint, placement), **ingress)
        child["spec"].setdefault("ingressClassName", "default-of-the-cluster")
        children[INGRESS, "chat"] = child
    return Situation(endpoint, settings, Observed(children), refusal, surroundings=known)


TWO = {"parentRefs": [{"namespace": "infra", "name": "public"}, {"name": "own", "port": 80}]}
OWN = {"namespace": "team", "name": "own", "port": 80}


@pytest.mark.parametrize(
    ("subject", "status", "reason", "said"),
    [
        (situation(ROUTE, answer()), "True", "Programmed", "taken the HTTPRoute up"),
        (situation(ROUTE, answer(), surroundings=know()), "False", "GatewayNotFound", "infra/public does not exist"),
        (
            situation(ROUTE, answer(), surroundings=know(namespace="infra")),
            "False",
            "GatewayNotFound",
            "does not exist",
        ),
        # Where the operator may not look, the answer of the controller counts.
        (situation(ROUTE, answer(), surroundings=know(namespace="team")), "True", "Programmed", ""),
        (situation(ROUTE), "False", "NotAdmitted", "has not answered"),
        (situation(ROUTE, answer(name="other")), "False", "NotAdmitted", "has not answered"),
        (situation(ROUTE, answer(sectionName="web")), "False", "NotAdmitted", "has not answered"),
        (situation(ROUTE, answer(generation=0)), "False", "NotAdmitted", "present route"),
        (situation(ROUTE, answer() | {"conditions": []}), "False", "NotAdmitted", "present route"),
        (
            situation(ROUTE, answer("False", "NotAllowedByListeners")),
            "False",
            "NotAdmitted",
            "(NotAllowedByListeners)",
        ),
        (
            situation(ROUTE, answer("False", "NoMatchingListenerHostname")),
            "False",
            "NotAdmitted",
            "(NoMatchingListenerHostname)",
        ),
        (situation(ROUTE, answer("False", "NoMatchingParent")), "False", "NotAdmitted", "(NoMatchingParent)"),
        (situation(ROUTE, answer("False", "Odd", "because")), "False", "NotAdmitted", "(Odd: because)"),
        (situation(ROUTE, answer(resolved="False")), "False", "NotAdmitted", "BackendNotFound: no Service"),
        # One of two controllers that both watch the Gateway's class.
        (situation(ROUTE, answer("False", "Odd"), answer()), "True", "Programmed", ""),
        (
            situation(
                ROUTE,
                answer(),
                surroundings=know(
                    gateway(HTTP, conditions=[{"type": "Programmed", "status": "False", "reason": "NoAddress"}])
                ),
            ),
            "False",
            "NotAdmitted",
            "NoAddress",
        ),
        (
            situation(TWO, answer(), surroundings=know(gateway(HTTP))),
            "True",
            "PartlyProgrammed",
            "Gateway team/own does not exist",
        ),
        (
            situation(
                TWO,
                answer(),
                answer(**OWN),
                surroundings=know(gateway(HTTP), gateway(HTTP, name="own", namespace="team")),
            ),
            "True",
            "Programmed",
            "",
        ),
        (situation(ROUTE, surroundings=know(api=False)), "False", "GatewayAPINotInstalled", "does not know HTTPRoutes"),
        (situation({"type": "HTTPRoute"}), "False", "GatewayNotNamed", "no Gateway is named"),
        (
            situation({}, answer(), route_type="HTTPRoute", route_parent_refs=(ParentRef("public", "infra"),)),
            "True",
            "Programmed",
            "",
        ),
        (situation(ROUTE, answer(), refusal=Refusal("PathConflict", "taken")), "False", "PathConflict", "taken"),
    ],
)
def test_http_route(subject, status, reason, said):
    condition = build_routed(subject)
    assert (condition.status, condition.reason) == (status, reason)
    assert said in condition.message


def classes(*names, default=()):
    items = (IngressClass(name, "traefik.io/ingress-controller", name in default, "2026-01-01") for name in names)
    return Surroundings(ingress_classes={item.name: item for item in items})


@pytest.mark.parametrize(
    ("subject", "status", "reason", "said"),
    [
        (situation({"className": "a"}, ingress=ADMITTED, surroundings=classes("a")), "True", "Programmed", ""),
        # The address is of the class that it had before.
        (
            situation({"className": "b"}, ingress=ADMITTED, surroundings=classes("a", "c")),
            "False",
            "ClassNotFound",
            "no IngressClass b (there is: a, c)",
        ),
        (situation({"className": "b"}, ingress={}, surroundings=classes()), "False", "ClassNotFound", "is: none"),
        # The class that the API server filled in is gone.
        (
            situation({}, ingress=ADMITTED, surroundings=classes("a")),
            "False",
            "ClassNotFound",
            "no IngressClass default-of-the-cluster",
        ),
        # What else is refused says nothing of the route.
        (
            situation({}, ingress=ADMITTED, surroundings=Surroundings(), refusal=Refusal("QuotaExceeded", "no room")),
            "True",
            "Programmed",
            "",
        ),
        (situation({"className": "b"}, ingress=ADMITTED, surroundings=Surroundings()), "True", "Programmed", ""),
        (situation({"className": "b"}, ingress={}, surroundings=Surroundings()), "False", "NotAdmitted", "of class b"),
        (
            situation({"className": "a", "maxBodySize": "1Mi"}, ingress=ADMITTED, surroundings=classes("a")),
            "True",
            "Programmed",
            "spec.route.maxBodySize has no effect with controller profile Traefik",
        ),
        (
            situation(
                {"className": "a", "maxBodySize": "1Mi", "requestTimeoutSeconds": 9},
                ingress=ADMITTED,
                surroundings=Surroundings(),
            ),
            "True",
            "Programmed",
            "spec.route.requestTimeoutSeconds and spec.route.maxBodySize have no effect with",
        ),
    ],
)
def test_ingress(subject, status, reason, said):
    condition = build_routed(subject)
    assert (condition.status, condition.reason) == (status, reason)
    assert said in condition.message


@pytest.mark.parametrize(("default", "which_it_has_not"), [((), True), (("a",), False)])
def test_no_class_named_and_none_is_the_default(default, which_it_has_not):
    subject = situation({}, ingress={}, surroundings=classes("a", default=default))
    del subject.observed.children[INGRESS, "chat"]["spec"]["ingressClassName"]
    condition = build_routed(subject)
    assert condition.reason == "NotAdmitted"
    assert "of the cluster's default class" in condition.message
    assert ("which it has not" in condition.message) is which_it_has_not


def test_limits_that_have_an_effect_are_not_told():
    limits = {"className": "a", "maxBodySize": "1Mi", "requestTimeoutSeconds": 9, "controllerProfile": "NGINX"}
    condition = build_routed(situation(limits, ingress=ADMITTED, surroundings=classes("a")))
    assert condition.message == "the ingress controller gave the Ingress an address"


NARROW = HTTPS | {"hostname": "llm.example.com"}
WIDE = HTTPS | {"hostname": "*.example.com", "port": 8443}
CLOSED = HTTPS | {"allowedRoutes": {"namespaces": {"from": "Same"}}}


@pytest.mark.parametrize(
    ("route", "listeners", "defaults", "url"),
    [
        ({}, [HTTP], {}, "http://192.0.2.9/chat/v1"),
        ({"host": "h.example"}, [HTTP], {}, "http://h.example/chat/v1"),
        ({}, [HTTP], {"route_host": "h.example"}, "http://h.example/chat/v1"),
        ({"host": "h.example"}, [HTTP, HTTPS], {}, "https://h.example/chat/v1"),
        ({"host": "h.example"}, [HTTP, CLOSED], {}, "http://h.example/chat/v1"),
        ({"host": "h.example"}, [HTTP, NARROW], {}, "http://h.example/chat/v1"),
        ({"host": "llm.example.com"}, [HTTP, NARROW], {}, "https://llm.example.com/chat/v1"),
        ({"host": "llm.example.com"}, [HTTP, WIDE], {}, "https://llm.example.com:8443/chat/v1"),
        ({"host": "example.com"}, [HTTP, WIDE], {}, "http://example.com/chat/v1"),
        ({}, [NARROW], {}, "https://llm.example.com/chat/v1"),
        ({}, [WIDE], {}, "https://192.0.2.9:8443/chat/v1"),
        ({"section": "web"}, [HTTP, HTTPS], {}, "http://192.0.2.9/chat/v1"),
        ({"port": 80}, [HTTP, HTTPS], {}, "http://192.0.2.9/chat/v1"),
        (
            {"host": "h.example"},
            [WIDE | {"hostname": None}],
            {"route_external_tls_port": 443},
            "https://h.example/chat/v1",
        ),
        ({"host": "h.example"}, [HTTP], {"route_external_scheme": "https"}, "https://h.example/chat/v1"),
        (
            {"host": "h.example"},
            [HTTP | {"port": 8080}],
            {"route_external_scheme": "https"},
            "https://h.example/chat/v1",
        ),
        ({"host": "h.example"}, [HTTP | {"port": 8080}], {"route_external_port": 80}, "http://h.example/chat/v1"),
        (
            {"host": "h.example"},
            [HTTP],
            {"route_external_scheme": "https", "route_external_port": 8080, "route_external_tls_port": 8443},
            "https://h.example:8443/chat/v1",
        ),
        ({"host": "h.example"}, [], {}, "http://h.example/chat/v1"),
    ],
)
def test_url_is_that_of_the_listener(route, listeners, defaults, url):
    parent = {"namespace": "infra", "name": "public"}
    host = {"host": route["host"]} if "host" in route else {}
    parent |= {"sectionName": route["section"]} if "section" in route else {}
    parent |= {"port": route["port"]} if "port" in route else {}
    subject = situation(host | {"parentRefs": [parent]}, surroundings=know(gateway(*listeners)), **defaults)
    assert build_url(subject) == url


def test_url_goes_by_the_gateway_that_leads_here():
    known = know(gateway(HTTP), gateway(HTTPS, name="own", namespace="team", addresses=["192.0.2.10"]))
    route = {"parentRefs": [{"namespace": "infra", "name": "public"}, {"name": "own"}]}
    refused = answer("False", "NotAllowedByListeners")
    subject = situation(route, refused, answer(namespace="team", name="own"), surroundings=known)
    assert build_url(subject) == "https://192.0.2.10/chat/v1"


def test_url_of_an_unknown_gateway_is_known_by_host_only():
    unknown = Surroundings(serves_http_routes=True)
    assert build_url(situation(ROUTE, surroundings=unknown)) is None
    assert build_url(situation(ROUTE | {"host": "h"}, surroundings=unknown)) == "http://h/chat/v1"
    assert build_url(situation({"type": "HTTPRoute", "host": "h"}, surroundings=unknown)) is None


@pytest.mark.parametrize(
    ("subject", "told"),
    [
        (situation({"type": "None"}, route_host="h"), {"type": "None"}),
        (
            situation({}, ingress=ADMITTED, route_host="h", route_class_name="c", route_controller_profile="NGINX"),
            {
                "type": "Ingress",
                "host": "h",
                "className": "c",
                "controllerProfile": "NGINX",
                "requestTimeoutSeconds": 3600,
                "maxBodySize": "32Mi",
            },
        ),
        (
            situation({}, ingress=ADMITTED),
            {"type": "Ingress", "className": "default-of-the-cluster", "controllerProfile": "Generic"},
        ),
        (
            situation(
                {"host": "h", "requestTimeoutSeconds": 5}, route_type="HTTPRoute", route_parent_refs=(ParentRef("g"),)
            ),
            {"type": "HTTPRoute", "host": "h", "requestTimeoutSeconds": 5, "gateways": ["team/g"]},
        ),
    ],
)
def test_status_tells_what_took_effect(subject, told):
    assert build_route_status(subject) == told
