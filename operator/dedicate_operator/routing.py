"""Where an endpoint is reached, and whether its route leads there. Pure."""

from __future__ import annotations

from dedicate_operator.attachment import Attachment, assess_attachments, select_listener
from dedicate_operator.kinds import Json
from dedicate_operator.placement import Placement, place_route
from dedicate_operator.situation import Condition, Situation

_TYPE = "RouteAdmitted"
_STANDARD_PORTS = {"http": 80, "https": 443}


def place(situation: Situation) -> Placement:
    return place_route(situation.endpoint, situation.defaults, situation.surroundings, situation.observed)


def build_url(situation: Situation) -> str | None:
    """Return the base URL for OpenAI clients, None while nobody knows it."""
    endpoint, placement = situation.endpoint, place(situation)
    if placement.type == "None":
        return f"http://{endpoint.key.name}.{endpoint.key.namespace}.svc/{endpoint.spec.dedicate}/v1"
    if _is_path_taken(situation):
        return None
    if placement.type == "HTTPRoute":
        address = _find_gateway_address(situation, placement)
    else:
        host = placement.host or _find_ingress_address(situation.observed.ingress(endpoint))
        address = _format_address(situation, host, is_tls=placement.is_tls)
    return f"{address}/{endpoint.spec.dedicate}/v1" if address else None


def build_routed(situation: Situation) -> Condition:
    placement = place(situation)
    if placement.type == "None":
        return Condition(_TYPE, "True", "NotRequested", "spec.route.type is None: reached within the cluster only")
    if situation.refusal is not None and _is_path_taken(situation):
        return Condition(_TYPE, "False", situation.refusal.reason, situation.refusal.message)
    if placement.type == "HTTPRoute":
        return _build_gateway_routed(situation, placement)
    return _build_ingress_routed(situation, placement)


def build_route_status(situation: Situation) -> Json:
    """Return what of the route took effect, the operator's defaults among it."""
    placement = place(situation)
    if placement.type == "None":
        return {"type": placement.type}
    told: Json = {"type": placement.type, "host": placement.host, "requestTimeoutSeconds": placement.request_timeout_s}
    if placement.type == "HTTPRoute":
        told["gateways"] = [f"{parent.namespace}/{parent.name}" for parent in placement.parents]
    else:
        ingress = situation.observed.ingress(situation.endpoint) or {}
        class_name = placement.class_name or (ingress.get("spec") or {}).get("ingressClassName")
        told |= {"className": class_name, "controllerProfile": placement.profile}
        told["maxBodySize"] = placement.max_body_size
    return {name: value for name, value in told.items() if value}


def _is_path_taken(situation: Situation) -> bool:
    return situation.refusal is not None and situation.refusal.reason == "PathConflict"


def _build_ingress_routed(situation: Situation, placement: Placement) -> Condition:
    ingress = situation.observed.ingress(situation.endpoint)
    class_name = placement.class_name or ((ingress or {}).get("spec") or {}).get("ingressClassName")
    classes = situation.surroundings.ingress_classes
    # First: a controller that once gave an address does not take it back when the class changes.
    if classes is not None and class_name is not None and class_name not in classes:
        known = ", ".join(sorted(classes)) or "none"
        message = f"there is no IngressClass {class_name} (there is: {known})"
        return Condition(_TYPE, "False", "ClassNotFound", message)
    if _find_ingress_address(ingress) is None:
        of_class = f"of class {class_name}" if class_name else "of the cluster's default class"
        if classes is not None and class_name is None and situation.surroundings.find_default_class() is None:
            of_class += ", which it has not,"
        return Condition(_TYPE, "False", "NotAdmitted", f"no ingress controller {of_class} gave the Ingress an address")
    message = "the ingress controller gave the Ingress an address"
    ignored = _find_ignored(situation, placement)
    if ignored:
        message += f"; {ignored} no effect with controller profile {placement.profile}, which has a limit of its own"
    return Condition(_TYPE, "True", "Programmed", message)


def _find_ignored(situation: Situation, placement: Placement) -> str | None:
    """Name the fields that were given and that the controller which Auto found has no annotation for."""
    route = situation.endpoint.spec.route
    names = [
        f"spec.route.{name}"
        for name, asked, taken in (
            ("requestTimeoutSeconds", route.request_timeout_s, placement.request_timeout_s),
            ("maxBodySize", route.max_body_size, placement.max_body_size),
        )
        if asked is not None and taken is None
    ]
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'}" if names else None


def _build_gateway_routed(situation: Situation, placement: Placement) -> Condition:
    if not situation.surroundings.serves_http_routes:
        message = "the cluster does not know HTTPRoutes of gateway.networking.k8s.io/v1"
        return Condition(_TYPE, "False", "GatewayAPINotInstalled", message)
    if not placement.parents:
        return Condition(_TYPE, "False", "GatewayNotNamed", "no Gateway is named for the HTTPRoute")
    attachments = _assess(situation, placement)
    refusals = [item.refusal for item in attachments if item.refusal is not None]
    told = "; ".join(refusal.message for refusal in refusals)
    if len(refusals) == len(attachments):
        return Condition(_TYPE, "False", refusals[0].reason, told)
    if refusals:
        return Condition(_TYPE, "True", "PartlyProgrammed", f"by another Gateway only: {told}")
    return Condition(_TYPE, "True", "Programmed", "every Gateway has taken the HTTPRoute up")


def _assess(situation: Situation, placement: Placement) -> tuple[Attachment, ...]:
    http_route = situation.observed.http_route(situation.endpoint)
    return assess_attachments(placement, http_route, situation.surroundings)


def _find_gateway_address(situation: Situation, placement: Placement) -> str | None:
    """Return scheme, host and port at the first Gateway that leads here, at the first one while none does."""
    endpoint = situation.endpoint
    attachments = _assess(situation, placement)
    if not attachments:
        return None
    attachment = next((item for item in attachments if item.refusal is None), attachments[0])
    gateway, listener = attachment.gateway, select_listener(attachment, placement, endpoint.key.namespace)
    if listener is None:
        return _format_address(situation, placement.host or (gateway.address if gateway else None), is_tls=False)
    own = listener.hostname if listener.hostname and not listener.hostname.startswith("*.") else None
    host = placement.host or own or (gateway.address if gateway else None)
    return _format_address(situation, host, is_tls=listener.is_tls, port=listener.port)


def _format_address(situation: Situation, host: str | None, *, is_tls: bool, port: int | None = None) -> str | None:
    """Return `scheme://host[:port]`; what the operator was told of the way from outside goes before `port`."""
    if host is None:
        return None
    defaults = situation.defaults
    scheme = defaults.route_external_scheme or ("https" if is_tls else "http")
    told = defaults.route_external_tls_port if scheme == "https" else defaults.route_external_port
    number = told or (port if scheme == ("https" if is_tls else "http") else None)
    suffix = f":{number}" if number not in {None, _STANDARD_PORTS[scheme]} else ""
    return f"{scheme}://{host}{suffix}"


def _find_ingress_address(ingress: Json | None) -> str | None:
    balancer = ((ingress or {}).get("status") or {}).get("loadBalancer") or {}
    for entry in balancer.get("ingress") or []:
        address: str | None = entry.get("hostname") or entry.get("ip")
        if address:
            return address
    return None
