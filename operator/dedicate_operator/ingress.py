"""The Ingress of an endpoint. Pure."""

from __future__ import annotations

from dedicate_operator import names
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import Manifest

_NGINX_UNITS = {"Ki": "k", "Mi": "m", "Gi": "g"}


def build_ingress(endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest:
    """Return the Ingress: a plain prefix path, since the runtime serves below it and nothing is rewritten."""
    route = endpoint.spec.route
    host = route.host or defaults.route_host
    class_name = route.class_name or defaults.route_class_name
    backend = {"service": {"name": endpoint.key.name, "port": {"name": names.API_PORT_NAME}}}
    rule: Manifest = {
        "http": {"paths": [{"path": f"/{endpoint.spec.dedicate}", "pathType": "Prefix", "backend": backend}]}
    }
    spec: Manifest = {"rules": [rule | ({"host": host} if host else {})]}
    if class_name:
        spec["ingressClassName"] = class_name
    if route.is_tls:
        tls = ({"hosts": [host]} if host else {}) | ({"secretName": route.tls_secret} if route.tls_secret else {})
        spec["tls"] = [tls]
    metadata = build_metadata(endpoint, endpoint.key.name)
    annotations = _build_route_annotations(endpoint)
    if annotations:
        metadata["annotations"] = annotations
    return seal({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec})


def _build_route_annotations(endpoint: Endpoint) -> dict[str, str]:
    route = endpoint.spec.route
    if route.controller_profile != "IngressNGINX":
        return {}
    prefix = "nginx.ingress.kubernetes.io"
    return {
        f"{prefix}/proxy-read-timeout": str(route.request_timeout_s),
        f"{prefix}/proxy-send-timeout": str(route.request_timeout_s),
        f"{prefix}/proxy-buffering": "off",
        f"{prefix}/proxy-request-buffering": "off",
        f"{prefix}/proxy-body-size": route.max_body_size[:-2] + _NGINX_UNITS[route.max_body_size[-2:]],
    }
