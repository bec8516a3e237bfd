"""The endpoints that are measured, and the very objects that the operator makes for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.scale.client import Json
from dedicate_operator import names
from dedicate_operator.desired import build_desired
from dedicate_operator.kinds import kind_of
from dedicate_operator.manifests import build_keys_secret
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.placement import Placement
from dedicate_operator.settings import EndpointDefaults

NAMESPACE = "fleet"
ENDPOINTS = f"/apis/{names.API_VERSION}/namespaces/{NAMESPACE}/{names.PLURAL}"
_METADATA = {"name": "team-00000", "namespace": NAMESPACE, "uid": "uid", "generation": 1}
_DEFAULTS = EndpointDefaults(image="registry.example/dedicate-runtime:bench")


def endpoint_name(index: int) -> str:
    return f"team-{index:05}"


@dataclass(frozen=True)
class Fleet:
    """So many endpoints, with pods that stay pending or with nodes that make them ready."""

    size: int
    has_nodes: bool = False

    def endpoints(self) -> Iterator[Json]:
        """Yield the endpoints; each has every usual child, but no claim where nothing would ever bind one."""
        cache = {"emptyDir": {"sizeLimit": "10Gi"}} if self.has_nodes else {"persistentVolumeClaim": {"size": "10Gi"}}
        for index in range(self.size):
            yield {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "metadata": {"name": endpoint_name(index), "namespace": NAMESPACE},
                "spec": {"model": {"uri": "hf://SeaLLMs/SeaLLMs-v3-1.5B-Chat"}, "cache": cache},
            }

    def collections(self) -> dict[str, str]:
        """Return the address of each kind of child, by plural."""
        paths = [path for path, _ in build_children(next(self.endpoints()) | {"metadata": _METADATA})]
        return {path.split("/")[-2]: path.rpartition("/")[0] for path in paths}


def build_children(resource: Json) -> list[tuple[str, Json]]:
    """Return the children of an endpoint as the API server has it, each with its address."""
    endpoint = parse_endpoint(resource)
    manifests = [build_keys_secret(endpoint, "k" * 43), *build_desired(endpoint, _DEFAULTS, Placement("Ingress"))]
    return [(_address(manifest), manifest) for manifest in manifests]


def _address(manifest: Json) -> str:
    kind, metadata = kind_of(manifest), manifest["metadata"]
    return f"{_root(kind.api_version)}/namespaces/{metadata['namespace']}/{kind.plural}/{metadata['name']}"


def _root(api_version: str) -> str:
    return f"/apis/{api_version}" if "/" in api_version else f"/api/{api_version}"
