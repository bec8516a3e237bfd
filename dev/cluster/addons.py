"""The objects that a fresh cluster is given: who may do what, the DNS Service, the Gateway API, the classes of routes.

Run as a task: applies them all and ends.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from dev.cluster.control_plane import client_files
from dev.cluster.errors import ClusterError
from dev.cluster.kube import APPLY_PATCH, ApiClient
from dev.cluster.manifests import GATEWAY_API, obtain_manifests, read_definitions
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan

_FIELD_MANAGER = "dedicate-local-cluster"
_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")
_GATEWAY = "gateway.networking.k8s.io"
_ROUTE_KINDS = ("gatewayclasses", "gateways", "httproutes", "grpcroutes", "tlsroutes", "listenersets")
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_ESTABLISHED_S = 30
INGRESS_CLASS = "traefik"
GATEWAY_CLASS = "traefik"

Manifest = dict[str, Any]


def build_addons(plan: ClusterPlan) -> dict[str, Manifest]:
    """Return the objects by the API path that each is applied to."""
    return {
        **_grant("kubelet-client", "dedicate:kubelet-client", role="system:kubelet-api-admin"),
        **_role("gpus", [_rule("", ["nodes"], ("get",)), _rule("", ["nodes/status"], ("patch",))]),
        **_role(
            "coredns",
            [
                _rule("", ["services", "namespaces"], _READ),
                _rule("discovery.k8s.io", ["endpointslices"], _READ),
            ],
        ),
        **_role(
            "network-policies",
            [
                _rule("", ["pods", "namespaces"], ("list", "watch")),
                _rule("", ["nodes"], ("get",)),
                _rule("networking.k8s.io", ["networkpolicies"], ("list", "watch")),
            ],
        ),
        **_role(
            "traefik",
            [
                _rule("", ["services", "secrets", "nodes"], _READ),
                _rule("discovery.k8s.io", ["endpointslices"], _READ),
                _rule("networking.k8s.io", ["ingresses", "ingressclasses"], _READ),
                _rule("networking.k8s.io", ["ingresses/status"], ("update",)),
                # It waits for all of these kinds, of whatever use they are to it.
                _rule("", ["configmaps", "namespaces"], _READ),
                _rule(_GATEWAY, [*_ROUTE_KINDS, "referencegrants", "backendtlspolicies"], _READ),
                _rule(_GATEWAY, [f"{kind}/status" for kind in (*_ROUTE_KINDS, "backendtlspolicies")], ("update",)),
            ],
        ),
        **_dns_service(plan),
        **_ingress_class(),
        **_gateway_class(),
    }


def _rule(group: str, resources: list[str], verbs: tuple[str, ...]) -> Manifest:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}


def _role(component: str, rules: list[Manifest]) -> dict[str, Manifest]:
    name = f"dedicate:{component}"
    role = {"apiVersion": f"{_RBAC}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}
    return {f"/apis/{_RBAC}/v1/clusterroles/{name}": role, **_grant(component, name, role=name)}


def _grant(component: str, user: str, *, role: str) -> dict[str, Manifest]:
    name = f"dedicate:{component}"
    binding = {
        "apiVersion": f"{_RBAC}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name},
        "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": user}],
    }
    return {f"/apis/{_RBAC}/v1/clusterrolebindings/{name}": binding}


def _dns_service(plan: ClusterPlan) -> dict[str, Manifest]:
    """Point the customary DNS address at CoreDNS, which runs beside the node and not in it."""
    namespace = "/namespaces/kube-system"
    protocols = (("dns", "UDP"), ("dns-tcp", "TCP"))
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {
            "clusterIP": plan.dns_service_address,
            "ports": [{"name": name, "protocol": protocol, "port": 53} for name, protocol in protocols],
        },
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kube-dns",
            "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": [plan.host_address], "conditions": {"ready": True}}],
        "ports": [{"name": name, "protocol": protocol, "port": plan.ports.dns} for name, protocol in protocols],
    }
    return {
        f"/api/v1{namespace}/services/kube-dns": service,
        f"/apis/discovery.k8s.io/v1{namespace}/endpointslices/kube-dns": endpoints,
    }


def _ingress_class() -> dict[str, Manifest]:
    ingress_class = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "IngressClass",
        "metadata": {
            "name": INGRESS_CLASS,
            "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"},
        },
        "spec": {"controller": "traefik.io/ingress-controller"},
    }
    return {f"/apis/networking.k8s.io/v1/ingressclasses/{INGRESS_CLASS}": ingress_class}


def _gateway_class() -> dict[str, Manifest]:
    gateway_class = {
        "apiVersion": f"{_GATEWAY}/v1",
        "kind": "GatewayClass",
        "metadata": {"name": GATEWAY_CLASS},
        "spec": {"controllerName": "traefik.io/gateway-controller"},
    }
    return {f"/apis/{_GATEWAY}/v1/gatewayclasses/{GATEWAY_CLASS}": gateway_class}


def _apply(client: ApiClient, path: str, manifest: Manifest) -> None:
    client.request("PATCH", f"{path}?fieldManager={_FIELD_MANAGER}&force=true", manifest, APPLY_PATCH)


def _define_kinds(client: ApiClient) -> None:
    """Install the Gateway API's definitions and wait until the API server serves them."""
    definitions = read_definitions(obtain_manifests(GATEWAY_API))
    paths = {item["metadata"]["name"]: f"{_DEFINITIONS}/{item['metadata']['name']}" for item in definitions}
    for item in definitions:
        _apply(client, paths[item["metadata"]["name"]], item)
    deadline = time.monotonic() + _ESTABLISHED_S
    while missing := [name for name, path in paths.items() if not _is_established(client.request("GET", path))]:
        if time.monotonic() > deadline:
            raise ClusterError(f"Not served after {_ESTABLISHED_S} s: {', '.join(missing)}")
        time.sleep(0.1)


def _is_established(definition: Manifest) -> bool:
    conditions = (definition.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)


def main() -> int:
    """Apply the add-ons of the cluster whose folder is the argument."""
    paths = ClusterPaths(Path(sys.argv[1]))
    plan = ClusterPlan.from_json(paths.plan.read_text())
    client = ApiClient(plan.server, client_files(paths))
    _define_kinds(client)
    for path, manifest in build_addons(plan).items():
        _apply(client, path, manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
