"""The Gateway API in a cluster of the tests: its definitions come and go, and routes of its kind are read."""

from __future__ import annotations

from dev.cluster.manifests import GATEWAY_API, obtain_manifests, read_definitions
from tests.cluster.harness import eventually

GATEWAY = "/apis/gateway.networking.k8s.io/v1"
_DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_CHANGED_S = 30


def is_installed(api):
    return api.request("GET", f"{GATEWAY}/httproutes").is_success


def install(api):
    """Return once HTTPRoutes are served."""
    for definition in read_definitions(obtain_manifests(GATEWAY_API)):
        api.apply(f"{_DEFINITIONS}/{definition['metadata']['name']}", definition)
    eventually(lambda: is_installed(api), _CHANGED_S)


def uninstall(api):
    """Return once HTTPRoutes are served no more."""
    for definition in read_definitions(obtain_manifests(GATEWAY_API)):
        api.delete(f"{_DEFINITIONS}/{definition['metadata']['name']}")
    eventually(lambda: api.request("GET", f"{GATEWAY}/httproutes").status_code == 404, _CHANGED_S)


def route_of(namespace, name):
    return namespace.api.get(namespace.path(GATEWAY, "httproutes", name))
