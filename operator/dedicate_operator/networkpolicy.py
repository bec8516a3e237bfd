"""The NetworkPolicy of an endpoint: who reaches its pods, and where they go themselves. Pure.

In: the API port from the named peers, or from anyone where none is named; the management port from the operator's own
peers. The kubelet's probes come from the node, which no selector names and every controller lets through. Out: nothing
for a model on a claim; for a hub, DNS, HTTPS and the port of the operator's default hub. Ports of addresses that the
endpoint's environment spells out are open as well, since what is set there is meant to be reached.
"""

from __future__ import annotations

import copy
from urllib.parse import urlsplit

from dedicate_operator import names
from dedicate_operator.manifests import build_metadata, seal
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint, HubSource
from dedicate_operator.template import Manifest

# 5353 is where OpenShift's name servers listen; a policy sees the port behind the Service.
_DNS_PORTS = (53, 5353)
_HTTPS_PORT = 443
_SCHEME_PORTS = {"http": 80, "https": 443}
# Upper case; the lower-case spellings of the proxies mean the same.
_ADDRESS_VARIABLES = frozenset(
    {
        "HF_ENDPOINT",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    }
)


def is_restricted(endpoint: Endpoint, defaults: EndpointDefaults) -> bool:
    return (endpoint.spec.network_policy.mode or defaults.network_policy.mode) == "Restricted"


def build_network_policy(endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest:
    spec: Manifest = {
        "podSelector": {"matchLabels": names.build_selector(endpoint.key.name)},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": _build_ingress(endpoint, defaults),
        "egress": _build_egress(endpoint, defaults),
    }
    metadata = build_metadata(endpoint, endpoint.key.name)
    return seal(
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec},
    )


def _build_ingress(endpoint: Endpoint, defaults: EndpointDefaults) -> list[Manifest]:
    policy = defaults.network_policy
    clients = copy.deepcopy([*policy.allow_from, *endpoint.spec.network_policy.allow_from])
    # A rule without peers is open to all; one with an empty list of them would be, too.
    rules = [{"ports": _ports("TCP", names.API_PORT)} | ({"from": clients} if clients else {})]
    if policy.management_from:
        management = copy.deepcopy(list(policy.management_from))
        rules.append({"ports": _ports("TCP", names.MANAGEMENT_PORT), "from": management})
    return rules


def _build_egress(endpoint: Endpoint, defaults: EndpointDefaults) -> list[Manifest]:
    rules: list[Manifest] = []
    ports = find_destination_ports(endpoint, defaults.hub_endpoint)
    if ports:
        rules.append({"ports": _ports("TCP", *ports)})
    rules += copy.deepcopy(list(defaults.network_policy.extra_egress))
    if rules:  # Names are asked for only where there is somewhere to go.
        rules.insert(0, {"ports": [*_ports("UDP", *_DNS_PORTS), *_ports("TCP", *_DNS_PORTS)]})
    return rules


def find_destination_ports(endpoint: Endpoint, hub: str | None) -> tuple[int, ...]:
    """Return the ports at which the runtime itself calls others, in order; `hub` is the operator's default hub."""
    addresses = [
        str(variable.get("value") or "")
        for variable in endpoint.spec.runtime.env
        if str(variable["name"]).upper() in _ADDRESS_VARIABLES
    ]
    is_from_hub = isinstance(endpoint.spec.model.source, HubSource)
    ports = {_port_of(address) for address in [*addresses, *([hub] if is_from_hub and hub else [])]}
    # A mirror may send its clients on to where the files are.
    return tuple(sorted({port for port in ports if port} | ({_HTTPS_PORT} if is_from_hub else set())))


def _port_of(address: str) -> int | None:
    """Return the port of a URL, None where it is none; proxies may be written without a scheme."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        return parts.port or (_SCHEME_PORTS.get(parts.scheme) if parts.hostname else None)
    except ValueError:
        return None


def _ports(protocol: str, *ports: int) -> list[Manifest]:
    return [{"protocol": protocol, "port": port} for port in ports]
