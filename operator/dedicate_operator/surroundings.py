"""What others keep in the cluster that tells where routes lead: IngressClasses, Gateways, whether HTTPRoutes exist.

Only what the operator decides by is kept, so that a Gateway whose status counts its routes is no news. Pure: each
function returns new surroundings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dedicate_operator.identity import Key
from dedicate_operator.kinds import INGRESS_CLASS, Json, Kind

_DEFAULT_CLASS_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
_WEB_PROTOCOLS = frozenset({"HTTP", "HTTPS"})


@dataclass(frozen=True, slots=True)
class IngressClass:
    name: str
    controller: str
    is_default: bool
    created: str


@dataclass(frozen=True, slots=True)
class Listener:
    """One door of a Gateway, for HTTP or HTTPS."""

    name: str
    is_tls: bool
    port: int
    hostname: str | None
    # False where it lets in routes of the Gateway's own namespace only.
    is_shared: bool


@dataclass(frozen=True, slots=True)
class Gateway:
    """A Gateway as far as routes depend on it; `obstacle` is what its controller says against it."""

    key: Key
    listeners: tuple[Listener, ...]
    address: str | None
    obstacle: str | None


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known; the operator may not be allowed to look.

    Attributes:
        ingress_classes: by name; None if they may not be read.
        gateways: by the namespace that was listed, None being all of them.
        serves_http_routes: whether the Gateway API is installed.
    """

    ingress_classes: Mapping[str, IngressClass] | None = None
    gateways: Mapping[str | None, Mapping[Key, Gateway]] = field(default_factory=dict)
    serves_http_routes: bool = False

    def find_gateway(self, key: Key) -> Gateway | None:
        return next((found[key] for found in self.gateways.values() if key in found), None)

    def lacks_gateway(self, key: Key) -> bool:
        """Tell whether there is certainly no such Gateway."""
        is_listed = None in self.gateways or key.namespace in self.gateways
        return is_listed and self.find_gateway(key) is None

    def find_default_class(self) -> IngressClass | None:
        """Return the class that the API server gives an Ingress that names none: the newest of the default ones."""
        candidates = [item for item in (self.ingress_classes or {}).values() if item.is_default]
        newest = max((item.created for item in candidates), default="")
        return min((item for item in candidates if item.created == newest), key=lambda item: item.name, default=None)


def with_listed(known: Surroundings, kind: Kind, namespace: str | None, resources: Iterable[Json]) -> Surroundings:
    """Take over a complete list."""
    if kind == INGRESS_CLASS:
        return replace(known, ingress_classes={item.name: item for item in map(_parse_class, resources)})
    gateways = {item.key: item for item in map(_parse_gateway, resources)}
    return replace(known, gateways={**known.gateways, namespace: gateways})


def with_resource(known: Surroundings, kind: Kind, namespace: str | None, resource: Json) -> Surroundings:
    """Take over one resource, new or changed, of those listed in `namespace`."""
    if kind == INGRESS_CLASS:
        item = _parse_class(resource)
        return replace(known, ingress_classes={**(known.ingress_classes or {}), item.name: item})
    gateway = _parse_gateway(resource)
    return replace(
        known,
        gateways={**known.gateways, namespace: {**known.gateways.get(namespace, {}), gateway.key: gateway}},
    )


def without_resource(known: Surroundings, kind: Kind, namespace: str | None, resource: Json) -> Surroundings:
    if kind == INGRESS_CLASS:
        name = resource["metadata"]["name"]
        classes = {key: item for key, item in (known.ingress_classes or {}).items() if key != name}
        return replace(known, ingress_classes=classes)
    key = _key_of(resource)
    gateways = {other: item for other, item in known.gateways.get(namespace, {}).items() if other != key}
    return replace(known, gateways={**known.gateways, namespace: gateways})


def without_kind(known: Surroundings, kind: Kind, namespace: str | None) -> Surroundings:
    """Forget what can be read no more."""
    if kind == INGRESS_CLASS:
        return replace(known, ingress_classes=None)
    return replace(known, gateways={other: item for other, item in known.gateways.items() if other != namespace})


def _key_of(resource: Json) -> Key:
    return Key(resource["metadata"]["namespace"], resource["metadata"]["name"])


def _parse_class(resource: Json) -> IngressClass:
    metadata: Json = resource["metadata"]
    return IngressClass(
        name=metadata["name"],
        controller=(resource.get("spec") or {}).get("controller", ""),
        is_default=(metadata.get("annotations") or {}).get(_DEFAULT_CLASS_ANNOTATION) == "true",
        created=metadata.get("creationTimestamp", ""),
    )


def _parse_gateway(resource: Json) -> Gateway:
    status: Json = resource.get("status") or {}
    addresses = (item.get("value") for item in status.get("addresses") or [])
    return Gateway(
        key=_key_of(resource),
        listeners=tuple(
            _parse_listener(item)
            for item in resource["spec"].get("listeners") or []
            if item.get("protocol") in _WEB_PROTOCOLS
        ),
        address=next((address for address in addresses if address), None),
        obstacle=next(
            (
                f"is not working itself ({item.get('reason')}: {item.get('message', '')})"
                for item in status.get("conditions") or []
                if item.get("type") in {"Accepted", "Programmed"} and item.get("status") == "False"
            ),
            None,
        ),
    )


def _parse_listener(listener: Mapping[str, Any]) -> Listener:
    namespaces = (listener.get("allowedRoutes") or {}).get("namespaces") or {}
    return Listener(
        name=listener.get("name", ""),
        is_tls=listener.get("protocol") == "HTTPS",
        port=listener.get("port", 0),
        hostname=listener.get("hostname") or None,
        is_shared=namespaces.get("from", "Same") != "Same",
    )
