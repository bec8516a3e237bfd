"""Where an endpoint's route stands: what its author asked for, with every default filled in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from dedicate_operator.observed import Observed
from dedicate_operator.routes import ParentRef, RouteType
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint, Route
from dedicate_operator.surroundings import Surroundings

FoundProfile = Literal["Generic", "IngressNGINX", "NGINX", "Traefik"]

# What the controllers call themselves in `IngressClass.spec.controller`.
_PROFILES: dict[str, FoundProfile] = {
    "k8s.io/ingress-nginx": "IngressNGINX",
    "nginx.org/ingress-controller": "NGINX",
    "traefik.io/ingress-controller": "Traefik",
}
_NGINX = frozenset({"IngressNGINX", "NGINX"})
# For nginx, whose own 60 s and 1m are too little for a model that thinks and for a long prompt.
_TIMEOUT_S = 3600
_MAX_BODY_SIZE = "32Mi"


@dataclass(frozen=True, slots=True)
class Placement:
    """A route without open questions.

    Attributes:
        class_name: None leaves it to the API server, which fills in the cluster's default.
        profile: whose annotations an Ingress gets.
        parents: each with its namespace.
        request_timeout_s: None for no limit with an HTTPRoute; with an Ingress, where it has no effect.
        max_body_size: None where it has no effect.
    """

    type: RouteType
    host: str | None = None
    class_name: str | None = None
    profile: FoundProfile = "Generic"
    is_tls: bool = False
    tls_secret: str | None = None
    parents: tuple[ParentRef, ...] = ()
    request_timeout_s: int | None = None
    max_body_size: str | None = None


def select_type(route: Route, defaults: EndpointDefaults) -> RouteType:
    """Return the type asked for; where none is, that of the fields given, else the operator's default."""
    if route.type is not None:
        return route.type
    if route.parent_refs:
        return "HTTPRoute"
    is_ingress = route.class_name is not None or route.controller_profile is not None or route.is_tls
    return "Ingress" if is_ingress else defaults.route_type


def select_host(route: Route, defaults: EndpointDefaults) -> str | None:
    return route.host or defaults.route_host


def place_route(
    endpoint: Endpoint,
    defaults: EndpointDefaults,
    surroundings: Surroundings = Surroundings(),  # noqa: B008 - a frozen value
    observed: Observed = Observed(),  # noqa: B008 - likewise
) -> Placement:
    """Return where the route stands, as far as the surroundings tell."""
    route = endpoint.spec.route
    type_, host = select_type(route, defaults), select_host(route, defaults)
    if type_ == "None":
        return Placement(type_)
    if type_ == "HTTPRoute":
        parents = tuple(
            ParentRef(item.name, item.namespace or endpoint.key.namespace, item.section_name, item.port)
            for item in route.parent_refs or defaults.route_parent_refs
        )
        return Placement(type_, host=host, parents=parents, request_timeout_s=route.request_timeout_s)
    class_name = route.class_name or defaults.route_class_name
    profile = _select_profile(endpoint, defaults, surroundings, class_name or _read_class(observed, endpoint))
    is_nginx = profile in _NGINX
    return Placement(
        type_,
        host=host,
        class_name=class_name,
        profile=profile,
        is_tls=route.is_tls,
        tls_secret=route.tls_secret,
        request_timeout_s=(route.request_timeout_s or _TIMEOUT_S) if is_nginx else None,
        max_body_size=(route.max_body_size or _MAX_BODY_SIZE) if is_nginx else None,
    )


def _read_class(observed: Observed, endpoint: Endpoint) -> str | None:
    """Return the class that the API server once gave the Ingress; the cluster's default may have changed since."""
    ingress: dict[str, Any] = observed.ingress(endpoint) or {}
    name: str | None = (ingress.get("spec") or {}).get("ingressClassName")
    return name


def _select_profile(
    endpoint: Endpoint, defaults: EndpointDefaults, surroundings: Surroundings, class_name: str | None
) -> FoundProfile:
    """Return the profile asked for, by the endpoint or else the operator's default; Auto is looked up by the class."""
    profile = endpoint.spec.route.controller_profile or defaults.route_controller_profile
    if profile != "Auto":
        return profile
    if class_name is not None:
        found = (surroundings.ingress_classes or {}).get(class_name)
    else:
        found = surroundings.find_default_class()
    return _PROFILES.get(found.controller, "Generic") if found else "Generic"
