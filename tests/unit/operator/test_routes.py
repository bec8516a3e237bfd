"""The routes of each controller as they are written; what each field and default leads to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import INGRESS
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import place_route, select_type
from dedicate_operator.routes import ParentRef
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.surroundings import IngressClass, Surroundings
from tests.unit.operator.builders import DEFAULTS, HUB, as_child, custom_resource

GOLDEN = Path(__file__).parent / "golden" / "routes"
HOST = {"host": "llm.example.com"}
TLS = {"tls": {"secretName": "llm-tls"}}
GATEWAYS = {"parentRefs": [{"namespace": "infra", "name": "public", "sectionName": "https"}]}
ROUTES = {
    "generic": HOST | TLS | {"className": "haproxy", "controllerProfile": "Generic"},
    "ingress-nginx": HOST | TLS | {"className": "nginx", "controllerProfile": "IngressNGINX"},
    "f5-nginx": HOST | TLS | {"className": "nginx", "controllerProfile": "NGINX"},
    "traefik": HOST | TLS | {"className": "traefik", "controllerProfile": "Traefik"},
    "http-route": HOST | GATEWAYS,
    "http-route-limited": GATEWAYS | {"requestTimeoutSeconds": 600},
    "limits": HOST | {"controllerProfile": "NGINX", "requestTimeoutSeconds": 600, "maxBodySize": "1Gi"},
}


def endpoint(route):
    return parse_endpoint(custom_resource(spec=HUB | {"route": route}))


def build(route, defaults=DEFAULTS, **known):
    subject = endpoint(route)
    placement = place_route(subject, defaults, **known)
    return (build_http_route if placement.type == "HTTPRoute" else build_ingress)(subject, placement)


@pytest.mark.parametrize("name", ROUTES)
def test_routes_are_the_golden_ones(name):
    assert build(ROUTES[name]) == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


def test_every_golden_route_is_compared():
    assert {path.stem for path in GOLDEN.iterdir()} == set(ROUTES)


@pytest.mark.parametrize("name", ROUTES)
def test_nothing_is_rewritten(name):
    """One rewrite or regular expression on an ingress-nginx host turns every path of that host into one."""
    text = yaml.safe_dump(build(ROUTES[name])).lower()
    for word in ("rewrite", "regex", "snippet", "strip", "replace"):
        assert word not in text
    assert "/chat" in text


@pytest.mark.parametrize(
    ("route", "default", "type_"),
    [
        ({}, "Ingress", "Ingress"),
        ({}, "HTTPRoute", "HTTPRoute"),
        (HOST, "HTTPRoute", "HTTPRoute"),
        ({"type": "None"}, "HTTPRoute", "None"),
        ({"type": "Ingress"}, "HTTPRoute", "Ingress"),
        ({"type": "HTTPRoute"}, "Ingress", "HTTPRoute"),
        (GATEWAYS, "Ingress", "HTTPRoute"),
        ({"className": "nginx"}, "HTTPRoute", "Ingress"),
        ({"controllerProfile": "Auto"}, "HTTPRoute", "Ingress"),
        ({"tls": {}}, "HTTPRoute", "Ingress"),
    ],
)
def test_type(route, default, type_):
    assert select_type(endpoint(route).spec.route, EndpointDefaults(image="i", route_type=default)) == type_


def test_gateways_of_the_endpoint_go_before_the_operators_and_are_of_its_namespace_where_none_is_named():
    defaults = EndpointDefaults(
        image="i", route_type="HTTPRoute", route_parent_refs=(ParentRef("a"), ParentRef("b", "infra"))
    )
    assert place_route(endpoint({}), defaults).parents == (ParentRef("a", "team"), ParentRef("b", "infra"))
    assert place_route(endpoint({"parentRefs": [{"name": "own"}]}), defaults).parents == (ParentRef("own", "team"),)


def classes(*default, **controllers):
    items = {name: IngressClass(name, value, name in default, "2026-01-01") for name, value in controllers.items()}
    return Surroundings(ingress_classes=items)


KNOWN = classes(
    "proxy",
    nginx="k8s.io/ingress-nginx",
    f5="nginx.org/ingress-controller",
    proxy="traefik.io/ingress-controller",
    x="x",
)


@pytest.mark.parametrize(
    ("route", "defaults", "surroundings", "profile"),
    [
        ({"className": "nginx"}, {}, KNOWN, "IngressNGINX"),
        ({"className": "f5"}, {}, KNOWN, "NGINX"),
        ({}, {"route_class_name": "f5"}, KNOWN, "NGINX"),
        ({"className": "x"}, {}, KNOWN, "Generic"),
        ({"className": "unheard-of"}, {}, KNOWN, "Generic"),
        # The cluster's default class, which the API server will fill in.
        ({}, {}, KNOWN, "Traefik"),
        ({}, {}, classes(nginx="k8s.io/ingress-nginx"), "Generic"),
        # Where the operator may not read classes.
        ({"className": "nginx"}, {}, Surroundings(), "Generic"),
        ({"className": "nginx"}, {"route_controller_profile": "IngressNGINX"}, Surroundings(), "IngressNGINX"),
        ({"className": "nginx"}, {"route_controller_profile": "NGINX"}, KNOWN, "NGINX"),
        (
            {"className": "nginx", "controllerProfile": "Auto"},
            {"route_controller_profile": "NGINX"},
            KNOWN,
            "IngressNGINX",
        ),
        (
            {"className": "nginx", "controllerProfile": "Generic"},
            {"route_controller_profile": "NGINX"},
            KNOWN,
            "Generic",
        ),
    ],
)
def test_profile(route, defaults, surroundings, profile):
    assert place_route(endpoint(route), EndpointDefaults(image="i", **defaults), surroundings).profile == profile


def test_profile_follows_the_class_that_the_ingress_was_given_when_the_default_class_changes():
    ingress = as_child(build({}))
    ingress["spec"]["ingressClassName"] = "nginx"
    observed = Observed({(INGRESS, "chat"): ingress})
    assert place_route(endpoint({}), DEFAULTS, KNOWN, observed).profile == "IngressNGINX"


def test_newest_default_class_counts():
    old, new = IngressClass("a", "x", True, "2025-01-01"), IngressClass("b", "k8s.io/ingress-nginx", True, "2026-01-01")
    known = Surroundings(ingress_classes={"a": old, "b": new})
    assert place_route(endpoint({}), DEFAULTS, known).profile == "IngressNGINX"


@pytest.mark.parametrize(("size", "nginx"), [("512Ki", "512k"), ("8Mi", "8m"), ("1Gi", "1g")])
def test_sizes_are_written_as_nginx_reads_them(size, nginx):
    annotations = build({"controllerProfile": "NGINX", "maxBodySize": size})["metadata"]["annotations"]
    assert annotations["nginx.org/client-max-body-size"] == nginx


def test_an_http_route_names_the_port_of_its_gateway():
    (parent,) = build({"parentRefs": [{"name": "own", "port": 8443}]})["spec"]["parentRefs"]
    assert parent == {"kind": "Gateway", "namespace": "team", "name": "own", "port": 8443}


def test_timeouts_of_an_http_route_are_always_said():
    """Envoy's own is 15 s."""
    assert build(GATEWAYS)["spec"]["rules"][0]["timeouts"] == {"request": "0s", "backendRequest": "0s"}
