"""The words of routes that endpoints and the operator's settings share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dedicate_operator.fields import Fields

RouteType = Literal["Ingress", "HTTPRoute", "None"]
DefaultRouteType = Literal["Ingress", "HTTPRoute"]
Scheme = Literal["http", "https"]
# Whose annotations an Ingress carries. NGINX is F5's controller, not ingress-nginx.
ControllerProfile = Literal["Auto", "Generic", "IngressNGINX", "NGINX", "Traefik"]


@dataclass(frozen=True, slots=True)
class ParentRef:
    """A Gateway, or one listener of it; `namespace` None is the endpoint's own."""

    name: str
    namespace: str | None = None
    section_name: str | None = None
    port: int | None = None


def parse_parent_refs(fields: Fields, name: str) -> tuple[ParentRef, ...]:
    """Return the Gateways of the list `name`.

    Raises:
        SpecError: one of them cannot be read.
    """
    return tuple(
        ParentRef(
            name=item.text("name"),
            namespace=item.optional_text("namespace"),
            section_name=item.optional_text("sectionName"),
            port=item.optional_integer("port"),
        )
        for item in fields.children(name)
    )
