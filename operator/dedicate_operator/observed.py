"""What stands in the cluster for one endpoint, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dedicate_operator import names
from dedicate_operator.kinds import DEPLOYMENT, HTTP_ROUTE, INGRESS, Json, Kind
from dedicate_operator.spec import Endpoint


@dataclass(frozen=True, slots=True)
class Observed:
    """An endpoint's children by kind and name, and its pods, each as the API server last gave it."""

    children: Mapping[tuple[Kind, str], Json] = field(default_factory=dict)
    pods: tuple[Json, ...] = ()

    def deployment(self, endpoint: Endpoint) -> Json | None:
        return self.owned(DEPLOYMENT, endpoint)

    def ingress(self, endpoint: Endpoint) -> Json | None:
        return self.owned(INGRESS, endpoint)

    def http_route(self, endpoint: Endpoint) -> Json | None:
        return self.owned(HTTP_ROUTE, endpoint)

    def owned(self, kind: Kind, endpoint: Endpoint) -> Json | None:
        """Return the child of that kind that has the endpoint's own name."""
        child = self.children.get((kind, endpoint.key.name))
        return child if child is not None and is_owned(child, endpoint) else None


def is_owned(child: Mapping[str, Any], endpoint: Endpoint) -> bool:
    """Tell whether the operator made this object for this very endpoint, or keeps it for one of its name."""
    references = child["metadata"].get("ownerReferences") or []
    if any(reference.get("uid") == endpoint.uid for reference in references):
        return True
    # A retained cache has no owner, and somebody may have taken ours off; the labels say whose it is.
    return not references and _has_our_labels(child, endpoint.key.name)


def is_leftover(child: Mapping[str, Any], endpoint: Endpoint) -> bool:
    """Tell whether it belongs to an earlier endpoint of the same name: the garbage collector is on its way."""
    references = child["metadata"].get("ownerReferences") or []
    return any(
        reference.get("kind") == names.KIND
        and reference.get("apiVersion", "").startswith(f"{names.GROUP}/")
        and reference.get("name") == endpoint.key.name
        and reference.get("uid") != endpoint.uid
        for reference in references
    )


def is_terminating(resource: Mapping[str, Any]) -> bool:
    return resource["metadata"].get("deletionTimestamp") is not None


def find_condition(resource: Mapping[str, Any], type_: str) -> Json | None:
    """Return the condition of that type, None if the object has none yet."""
    conditions: list[Json] = (resource.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition.get("type") == type_), None)


def _has_our_labels(child: Mapping[str, Any], endpoint: str) -> bool:
    labels = child["metadata"].get("labels") or {}
    return labels.get(names.MANAGED_BY_LABEL) == names.FIELD_MANAGER and labels.get(names.ENDPOINT_LABEL) == endpoint
