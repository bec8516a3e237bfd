"""What should stand in the cluster for one endpoint: the manifests in order, and which present children go.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from dedicate_operator.disruption import build_disruption_budget
from dedicate_operator.drift import find_drift
from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import CHILDREN, CLAIM, Json, Kind, kind_of
from dedicate_operator.manifests import build_cache_claim, build_deployment, build_service
from dedicate_operator.networkpolicy import build_network_policy, is_restricted
from dedicate_operator.observed import Observed, is_owned, is_terminating
from dedicate_operator.placement import Placement
from dedicate_operator.rendering import Rendering
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint, OwnedClaimCache


@dataclass(frozen=True, slots=True)
class Plan:
    """The writes that one reconcile is to make.

    Attributes:
        missing: manifests of children that have not been observed; somebody else may hold their names.
        drifted: manifests of children of ours that are not as they should be, with the field that is not.
        foreign: children that hold a name of ours and belong to somebody else.
        obsolete: children of ours that should not be.
    """

    missing: tuple[Json, ...] = ()
    drifted: tuple[tuple[Json, str], ...] = ()
    foreign: tuple[Json, ...] = ()
    obsolete: tuple[tuple[Kind, str], ...] = ()


def build_desired(
    endpoint: Endpoint,
    defaults: EndpointDefaults,
    placement: Placement | None,
    *,
    can_surge: bool = True,
    rendering: Rendering | None = None,
    replicas: int | None = None,
    autoscaler: Json | None = None,
) -> tuple[Json, ...]:
    """Return the manifests of all children except the Secret, in the order in which they are applied.

    Args:
        endpoint: whose children.
        defaults: what it leaves out.
        placement: where its route stands; None if there is to be none, as where the path is another's.
        can_surge: whether the cluster can run a pod beyond the wanted ones during a rollout.
        rendering: the template of its pods; a new one if left out.
        replicas: how many pods there are to be; as many as wanted if left out.
        autoscaler: what scales it.
    """
    manifests: list[Json] = []
    if isinstance(endpoint.spec.cache, OwnedClaimCache):
        manifests.append(build_cache_claim(endpoint, endpoint.spec.cache))
    if is_restricted(endpoint, defaults):
        manifests.append(build_network_policy(endpoint, defaults))
    deployment = build_deployment(endpoint, defaults, can_surge=can_surge, rendering=rendering, replicas=replicas)
    manifests += [build_service(endpoint), deployment, build_disruption_budget(endpoint)]
    if autoscaler is not None:
        manifests.append(autoscaler)
    if placement is not None and placement.type == "Ingress":
        manifests.append(build_ingress(endpoint, placement))
    if placement is not None and placement.type == "HTTPRoute":
        manifests.append(build_http_route(endpoint, placement))
    return tuple(manifests)


def plan_writes(
    endpoint: Endpoint, desired: tuple[Json, ...], observed: Observed, *, kept: frozenset[Kind] = frozenset()
) -> Plan:
    """Compare what should be with what is; of the `kept` kinds nothing is obsolete."""
    missing: list[Json] = []
    drifted: list[tuple[Json, str]] = []
    foreign: list[Json] = []
    wanted = {(kind_of(manifest), manifest["metadata"]["name"]): manifest for manifest in desired}
    for identity, manifest in wanted.items():
        child = observed.children.get(identity)
        if child is None:
            missing.append(manifest)
        elif not is_owned(child, endpoint):
            foreign.append(child)
        elif not is_terminating(child):
            # A child that is going has its own event at the end, and is missing then.
            path = find_drift(manifest, child)
            if path is not None:
                drifted.append((manifest, path))
    obsolete = [
        identity
        for identity, child in observed.children.items()
        if identity not in wanted and identity[0] not in kept and _may_delete(identity[0], child, endpoint)
    ]
    obsolete.sort(key=lambda identity: (-CHILDREN.index(identity[0]), identity[1]))
    return Plan(tuple(missing), tuple(drifted), tuple(foreign), tuple(obsolete))


def _may_delete(kind: Kind, child: Json, endpoint: Endpoint) -> bool:
    if is_terminating(child) or not is_owned(child, endpoint):
        return False
    # A retained cache has no owner reference; it is its author's to delete.
    return kind != CLAIM or bool(child["metadata"].get("ownerReferences"))
