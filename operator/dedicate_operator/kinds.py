"""The kinds of objects that the operator deals with, and how their addresses are spelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dedicate_operator import names

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    group: str
    version: str
    kind: str
    plural: str

    def __str__(self) -> str:
        return self.kind

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


ENDPOINT = Kind(names.GROUP, names.VERSION, names.KIND, names.PLURAL)
CLAIM = Kind("", "v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICE = Kind("", "v1", "Service", "services")
DEPLOYMENT = Kind("apps", "v1", "Deployment", "deployments")
INGRESS = Kind("networking.k8s.io", "v1", "Ingress", "ingresses")
NETWORK_POLICY = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGET = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
AUTOSCALER = Kind("autoscaling", "v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
SCALED_OBJECT = Kind("keda.sh", "v1alpha1", "ScaledObject", "scaledobjects")
HTTP_ROUTE = Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes")
INGRESS_CLASS = Kind("networking.k8s.io", "v1", "IngressClass", "ingressclasses")
GATEWAY = Kind("gateway.networking.k8s.io", "v1", "Gateway", "gateways")
POD = Kind("", "v1", "Pod", "pods")
SECRET = Kind("", "v1", "Secret", "secrets")
CONFIG_MAP = Kind("", "v1", "ConfigMap", "configmaps")
EVENT = Kind("", "v1", "Event", "events")
LEASE = Kind("coordination.k8s.io", "v1", "Lease", "leases")

# Kinds that only some clusters serve; where they are not, what needs them says so.
OPTIONAL = frozenset({HTTP_ROUTE, SCALED_OBJECT})

# The kinds that are written, in the order in which they are: what a pod needs before the pod, the route last.
CHILDREN = (
    CLAIM,
    NETWORK_POLICY,
    SERVICE,
    DEPLOYMENT,
    DISRUPTION_BUDGET,
    AUTOSCALER,
    SCALED_OBJECT,
    INGRESS,
    HTTP_ROUTE,
)
WATCHED = (*CHILDREN, POD)
# What others keep and routes depend on; read where the operator may.
SURROUNDING = (INGRESS_CLASS, GATEWAY)

_BY_TYPE = {(kind.api_version, kind.kind): kind for kind in (*CHILDREN, SECRET, CONFIG_MAP)}


def kind_of(manifest: Json) -> Kind:
    return _BY_TYPE[manifest["apiVersion"], manifest["kind"]]
