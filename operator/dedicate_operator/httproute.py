"""The HTTPRoute of an endpoint, for the Gateway API. Pure."""

from __future__ import annotations

from dedicate_operator import names
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.placement import Placement
from dedicate_operator.routes import ParentRef
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import Manifest


def build_http_route(endpoint: Endpoint, placement: Placement) -> Manifest:
    """Return the HTTPRoute: a plain prefix path, since the runtime serves below it and nothing is rewritten.

    The timeouts are always written: an implementation's own, such as Envoy's of 15 s, would cut a stream. `0s` is none.
    Source: https://gateway-api.sigs.k8s.io/geps/gep-1742/
    """
    timeout = f"{placement.request_timeout_s or 0}s"
    rule: Manifest = {
        "matches": [{"path": {"type": "PathPrefix", "value": f"/{endpoint.spec.dedicate}"}}],
        "backendRefs": [{"kind": "Service", "name": endpoint.key.name, "port": names.SERVICE_PORT}],
        "timeouts": {"request": timeout, "backendRequest": timeout},
    }
    spec: Manifest = {"parentRefs": [_build_parent_ref(parent) for parent in placement.parents], "rules": [rule]}
    if placement.host:
        spec["hostnames"] = [placement.host]
    return seal(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": build_metadata(endpoint, endpoint.key.name),
            "spec": spec,
        }
    )


def _build_parent_ref(parent: ParentRef) -> Manifest:
    reference: Manifest = {"kind": "Gateway", "namespace": parent.namespace, "name": parent.name}
    if parent.section_name is not None:
        reference["sectionName"] = parent.section_name
    if parent.port is not None:
        reference["port"] = parent.port
    return reference
