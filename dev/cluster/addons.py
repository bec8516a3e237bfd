"""The objects that a fresh cluster is given: who may do what, the DNS Service, the ingress class.

Run as a task: applies them all and ends.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dev.cluster.control_plane import client_files
from dev.cluster.kube import APPLY_PATCH, ApiClient
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan

_FIELD_MANAGER = "dedicate-local-cluster"
_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")
INGRESS_CLASS = "traefik"

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
            ],
        ),
        **_dns_service(plan),
        **_ingress_class(),
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


def main() -> int:
    """Apply the add-ons of the cluster whose folder is the argument."""
    paths = ClusterPaths(Path(sys.argv[1]))
    plan = ClusterPlan.from_json(paths.plan.read_text())
    client = ApiClient(plan.server, client_files(paths))
    for path, manifest in build_addons(plan).items():
        client.request("PATCH", f"{path}?fieldManager={_FIELD_MANAGER}&force=true", manifest, APPLY_PATCH)
    return 0


if __name__ == "__main__":
    sys.exit(main())
