"""Where an endpoint is reached, and whether its route leads there. Pure."""

from __future__ import annotations

from dedicate_operator.kinds import Json
from dedicate_operator.situation import Condition, Situation


def build_url(situation: Situation) -> str | None:
    """Return the base URL for OpenAI clients, None while nobody knows it."""
    endpoint, defaults = situation.endpoint, situation.defaults
    route = endpoint.spec.route
    if route.type == "None":
        return f"http://{endpoint.key.name}.{endpoint.key.namespace}.svc/{endpoint.spec.dedicate}/v1"
    if situation.refusal is not None and situation.refusal.reason == "PathConflict":
        return None
    host = route.host or defaults.route_host or _find_address(situation.observed.ingress(endpoint))
    if host is None:
        return None
    scheme, standard_port = ("https", 443) if route.is_tls else ("http", 80)
    port = defaults.route_external_port
    suffix = f":{port}" if port not in {None, standard_port} else ""
    return f"{scheme}://{host}{suffix}/{endpoint.spec.dedicate}/v1"


def build_routed(situation: Situation) -> Condition:
    type_, endpoint = "RouteAdmitted", situation.endpoint
    if endpoint.spec.route.type == "None":
        return Condition(type_, "True", "NotRequested", "spec.route.type is None: reached within the cluster only")
    if situation.refusal is not None and situation.refusal.reason == "PathConflict":
        return Condition(type_, "False", situation.refusal.reason, situation.refusal.message)
    ingress = situation.observed.ingress(endpoint)
    if _find_address(ingress) is not None:
        return Condition(type_, "True", "Programmed", "the ingress controller gave the Ingress an address")
    class_name = ((ingress or {}).get("spec") or {}).get("ingressClassName")
    of_class = f"of class {class_name}" if class_name else "of the cluster's default class"
    return Condition(type_, "False", "NotAdmitted", f"no ingress controller {of_class} gave the Ingress an address")


def _find_address(ingress: Json | None) -> str | None:
    balancer = ((ingress or {}).get("status") or {}).get("loadBalancer") or {}
    for entry in balancer.get("ingress") or []:
        address: str | None = entry.get("hostname") or entry.get("ip")
        if address:
            return address
    return None
