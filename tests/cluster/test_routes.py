"""Routes by the Gateway API on a real API server, with its own definitions; the tests speak for the controllers."""

from __future__ import annotations

import pytest

from tests.cluster.gateways import GATEWAY, install, route_of, uninstall
from tests.cluster.harness import INGRESSES, SMALLEST, eventually

CLASSES = f"{INGRESSES}/ingressclasses"
# The operator asks every 30 s whether the cluster knows the kind by now.
NOTICED_S = 60.0
LISTENERS = [
    {"name": "web", "protocol": "HTTP", "port": 80, "allowedRoutes": {"namespaces": {"from": "All"}}},
    {
        "name": "websecure",
        "protocol": "HTTPS",
        "port": 8443,
        "tls": {"certificateRefs": [{"name": "tls"}]},
        "allowedRoutes": {"namespaces": {"from": "All"}},
    },
]


@pytest.fixture(autouse=True)
def running(operator):
    return operator


def make_gateway(namespace, name="public", listeners=LISTENERS):
    gateway = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name},
        "spec": {"gatewayClassName": "tests", "listeners": listeners},
    }
    namespace.api.apply(namespace.path(GATEWAY, "gateways", name), gateway)
    status = {"addresses": [{"type": "IPAddress", "value": "192.0.2.9"}]}
    namespace.api.merge(namespace.path(GATEWAY, "gateways", name) + "/status", {"status": status})


def answer(namespace, name, *, accepted="True", reason="Accepted"):
    """Speak for the Gateways' controller."""
    route = eventually(lambda: route_of(namespace, name))
    conditions = [
        {
            "type": type_,
            "status": status,
            "reason": reason,
            "message": "",
            "observedGeneration": route["metadata"]["generation"],
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        for type_, status, reason in (("Accepted", accepted, reason), ("ResolvedRefs", "True", "ResolvedRefs"))
    ]
    parents = [
        {"parentRef": reference, "controllerName": "example.com/gateway", "conditions": conditions}
        for reference in route["spec"]["parentRefs"]
    ]
    namespace.api.merge(namespace.path(GATEWAY, "httproutes", name) + "/status", {"status": {"parents": parents}})


def spec(namespace, *, host=True, **route):
    own = {"host": f"{namespace.name}.example"} if host else {}
    return {**SMALLEST, "dedicate": "chat", "route": own | route}


TO_PUBLIC = {"parentRefs": [{"name": "public"}]}


def test_http_route_is_made_once_the_gateway_api_is_installed(namespace, admin):
    uninstall(admin)
    namespace.apply("chat", spec(namespace, **TO_PUBLIC))
    namespace.await_condition("chat", "RouteAdmitted", "False", "GatewayAPINotInstalled")
    assert "Install the Gateway API" in namespace.message("chat", "RouteAdmitted")
    assert namespace.deployment("chat")
    install(admin)
    eventually(lambda: route_of(namespace, "chat"), NOTICED_S)
    namespace.await_condition("chat", "RouteAdmitted", "False", "GatewayNotFound")


def test_route_leads_here_when_its_gateway_says_so_and_the_url_is_the_listeners(namespace, gateway_api):
    namespace.apply("chat", spec(namespace, host=False, **TO_PUBLIC))
    namespace.await_condition("chat", "RouteAdmitted", "False", "GatewayNotFound")
    make_gateway(namespace)
    namespace.await_condition("chat", "RouteAdmitted", "False", "NotAdmitted")
    answer(namespace, "chat", accepted="False", reason="NotAllowedByListeners")
    eventually(lambda: "allowedRoutes" in namespace.message("chat", "RouteAdmitted"))
    answer(namespace, "chat")
    namespace.await_condition("chat", "RouteAdmitted", "True", "Programmed")
    assert namespace.endpoint("chat")["status"]["url"] == "https://192.0.2.9:8443/chat/v1"
    assert namespace.endpoint("chat")["status"]["route"] == {
        "type": "HTTPRoute",
        "gateways": [f"{namespace.name}/public"],
    }
    make_gateway(namespace, listeners=LISTENERS[:1])
    eventually(lambda: namespace.endpoint("chat")["status"]["url"] == "http://192.0.2.9:8080/chat/v1")
    namespace.api.delete(namespace.path(GATEWAY, "gateways", "public"))
    namespace.await_condition("chat", "RouteAdmitted", "False", "GatewayNotFound")


def test_http_route_is_healed_and_left_alone_when_it_is_fine(namespace, gateway_api):
    namespace.apply("chat", spec(namespace, **TO_PUBLIC))
    path = namespace.path(GATEWAY, "httproutes", "chat")
    eventually(lambda: route_of(namespace, "chat"))
    namespace.api.merge(path, {"spec": {"hostnames": ["elsewhere.example"]}})
    eventually(lambda: route_of(namespace, "chat")["spec"]["hostnames"] == [f"{namespace.name}.example"])
    before = route_of(namespace, "chat")["metadata"]
    generation = namespace.merge("chat", {"replicas": 2})["metadata"]["generation"]
    eventually(lambda: namespace.endpoint("chat")["status"]["observedGeneration"] == generation)
    assert namespace.deployment("chat")["spec"]["replicas"] == 2
    assert route_of(namespace, "chat")["metadata"]["resourceVersion"] == before["resourceVersion"]
    namespace.api.delete(path)
    eventually(lambda: route_of(namespace, "chat"))
    assert route_of(namespace, "chat")["metadata"]["uid"] != before["uid"]


def test_path_is_one_endpoints_across_ingress_and_http_route(namespace, other_namespace, gateway_api):
    shared = spec(namespace)["route"]
    namespace.apply("first", {**SMALLEST, "dedicate": "chat", "route": shared | TO_PUBLIC})
    eventually(lambda: route_of(namespace, "first"))
    namespace.await_next_second("first")
    other_namespace.apply("second", {**SMALLEST, "dedicate": "chat", "route": shared | {"className": "any"}})
    other_namespace.await_condition("second", "Accepted", "False", "PathConflict")
    assert f"{namespace.name}/first" in other_namespace.message("second", "Accepted")
    assert other_namespace.ingress("second") is None
    # Neither another type nor another class is another path; no route at all is.
    other_namespace.merge("second", {"route": {"className": None, "type": "HTTPRoute"} | TO_PUBLIC})
    eventually(lambda: other_namespace.endpoint("second")["status"]["observedGeneration"] == 2)
    assert other_namespace.conditions("second")["Accepted"] == ("False", "PathConflict")
    assert route_of(other_namespace, "second") is None
    namespace.delete("first")
    other_namespace.await_condition("second", "Accepted", "True", "Valid")
    eventually(lambda: route_of(other_namespace, "second"))


def test_route_that_changes_its_kind_stands_before_the_old_one_goes(namespace, gateway_api):
    make_gateway(namespace)
    namespace.apply("chat", spec(namespace))
    eventually(lambda: namespace.ingress("chat"))
    namespace.admit_route("chat")
    namespace.await_condition("chat", "RouteAdmitted", "True", "Programmed")
    namespace.merge("chat", {"route": TO_PUBLIC})
    namespace.await_condition("chat", "RouteAdmitted", "False", "NotAdmitted")
    assert route_of(namespace, "chat")
    assert namespace.ingress("chat")
    answer(namespace, "chat")
    namespace.await_condition("chat", "RouteAdmitted", "True", "Programmed")
    assert namespace.ingress("chat")
    eventually(lambda: namespace.ingress("chat") is None, 20)
    namespace.merge("chat", {"route": {"parentRefs": None}})
    eventually(lambda: namespace.ingress("chat"))
    assert route_of(namespace, "chat")
    namespace.admit_route("chat")
    eventually(lambda: route_of(namespace, "chat") is None, 20)


def test_class_that_does_not_exist_is_told_and_auto_finds_the_controller(namespace):
    name = f"nginx-{namespace.name}"
    namespace.apply("chat", {**SMALLEST, "route": {"className": name}})
    namespace.await_condition("chat", "RouteAdmitted", "False", "ClassNotFound")
    assert f"no IngressClass {name}" in namespace.message("chat", "RouteAdmitted")
    body = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {"name": name},
        "spec": {"controller": "k8s.io/ingress-nginx"},
    }
    namespace.api.apply(f"{CLASSES}/{name}", body)
    try:
        namespace.await_condition("chat", "RouteAdmitted", "False", "NotAdmitted")
        annotations = eventually(lambda: namespace.ingress("chat")["metadata"]["annotations"])
        assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
        assert namespace.endpoint("chat")["status"]["route"]["controllerProfile"] == "IngressNGINX"
    finally:
        namespace.api.delete(f"{CLASSES}/{name}")
    namespace.await_condition("chat", "RouteAdmitted", "False", "ClassNotFound")


def test_deletion_takes_the_http_route_along(namespace, gateway_api):
    namespace.apply("chat", spec(namespace, **TO_PUBLIC))
    eventually(lambda: route_of(namespace, "chat"))
    namespace.delete("chat")
    eventually(lambda: route_of(namespace, "chat") is None, 60)
