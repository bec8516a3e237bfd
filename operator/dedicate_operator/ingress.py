"""The Ingress of an endpoint. Pure."""

from __future__ import annotations

from dedicate_operator import names
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.placement import Placement
from dedicate_operator.spec import Endpoint
from dedicate_operator.template import Manifest

_NGINX_UNITS = {"Ki": "k", "Mi": "m", "Gi": "g"}


def build_ingress(endpoint: Endpoint, placement: Placement) -> Manifest:
    """Return the Ingress: a plain prefix path, since the runtime serves below it and nothing is rewritten."""
    host = placement.host
    backend = {"service": {"name": endpoint.key.name, "port": {"name": names.API_PORT_NAME}}}
    rule: Manifest = {
        "http": {"paths": [{"path": f"/{endpoint.spec.dedicate}", "pathType": "Prefix", "backend": backend}]}
    }
    spec: Manifest = {"rules": [rule | ({"host": host} if host else {})]}
    if placement.class_name:
        spec["ingressClassName"] = placement.class_name
    if placement.is_tls:
        secret = placement.tls_secret
        spec["tls"] = [({"hosts": [host]} if host else {}) | ({"secretName": secret} if secret else {})]
    metadata = build_metadata(endpoint, endpoint.key.name)
    annotations = _build_annotations(placement)
    if annotations:
        metadata["annotations"] = annotations
    return seal({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": spec})


def _build_annotations(placement: Placement) -> dict[str, str]:
    """Return what makes the controller stream unbuffered, wait for long enough, take long prompts, and use TLS."""
    timeout_s, body = placement.request_timeout_s, placement.max_body_size
    if placement.profile == "IngressNGINX":
        annotations = {
            "proxy-buffering": "off",
            "proxy-request-buffering": "off",
            "proxy-read-timeout": str(timeout_s),
            "proxy-send-timeout": str(timeout_s),
            "proxy-body-size": _format_nginx_size(body),
        }
        return {f"nginx.ingress.kubernetes.io/{name}": value for name, value in annotations.items()}
    if placement.profile == "NGINX":
        annotations = {
            "proxy-buffering": "False",
            "proxy-read-timeout": f"{timeout_s}s",
            "proxy-send-timeout": f"{timeout_s}s",
            "client-max-body-size": _format_nginx_size(body),
        }
        return {f"nginx.org/{name}": value for name, value in annotations.items()}
    # Traefik streams as it is; but of `spec.tls` it takes the certificate alone, and goes on serving without it.
    if placement.profile == "Traefik" and placement.is_tls:
        return {"traefik.ingress.kubernetes.io/router.tls": "true"}
    return {}


def _format_nginx_size(size: str | None) -> str:
    assert size is not None, "with nginx there always is a limit"
    return size[:-2] + _NGINX_UNITS[size[-2:]]
