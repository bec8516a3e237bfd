from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dedicate_operator import names
from dedicate_operator.desired import build_desired, plan_writes
from dedicate_operator.kinds import NETWORK_POLICY, kind_of
from dedicate_operator.networkpolicy import build_network_policy, find_destination_ports, is_restricted
from dedicate_operator.observed import Observed
from dedicate_operator.parsing import parse_endpoint
from dedicate_operator.settings import EndpointDefaults, NetworkPolicyDefaults
from tests.unit.operator.builders import HUB, as_child, custom_resource

GOLDEN = Path(__file__).parent / "golden" / "network-policies"
CLAIM = {"model": {"uri": "pvc://models/smollm"}}


def in_namespace(name):
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


OPERATOR = in_namespace("dedicate-system") | {"podSelector": {"matchLabels": {"app": "operator"}}}
CHART = NetworkPolicyDefaults(management_from=(OPERATOR, in_namespace("monitoring")))
CLOSED = NetworkPolicyDefaults(
    allow_from=(in_namespace("traefik"),),
    management_from=(OPERATOR,),
    extra_egress=({"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 8080}]},),
)
CASES = {
    "hub": (HUB, CHART),
    "claim": (CLAIM, CHART),
    "named-peers": (HUB | {"networkPolicy": {"allowFrom": [in_namespace("team-b"), {"podSelector": {}}]}}, CLOSED),
    "claim-with-extra-egress": (CLAIM, CLOSED),
}


def endpoint(spec=HUB):
    return parse_endpoint(custom_resource(spec=spec))


def defaults(policy=CHART):
    return EndpointDefaults(image="registry/runtime:1", network_policy=policy)


def build(spec, policy):
    return build_network_policy(endpoint(spec), defaults(policy))


@pytest.mark.parametrize("name", CASES)
def test_policies_are_the_golden_ones(name):
    assert build(*CASES[name]) == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


def test_without_peers_the_management_port_is_open_to_nobody():
    """A rule with an empty list of them would open it to all."""
    (rule,) = build(HUB, NetworkPolicyDefaults())["spec"]["ingress"]
    assert [port["port"] for port in rule["ports"]] == [names.API_PORT]


@pytest.mark.parametrize("name", CASES)
def test_the_builder_shares_nothing_with_its_arguments(name):
    spec, policy = copy.deepcopy(CASES[name])
    first = build(spec, policy)
    expected = copy.deepcopy(first)
    for rule in [*first["spec"]["ingress"], *first["spec"]["egress"]]:
        for value in rule.values():
            for item in value:
                item.clear()
    assert build(spec, policy) == expected


@pytest.mark.parametrize(
    ("own", "default", "restricted"),
    [(None, "Restricted", True), (None, "None", False), ("None", "Restricted", False), ("Restricted", "None", True)],
)
def test_the_endpoint_decides_and_else_the_chart(own, default, restricted):
    spec = HUB | ({"networkPolicy": {"mode": own}} if own else {})
    settings = defaults(NetworkPolicyDefaults(mode=default))
    assert is_restricted(endpoint(spec), settings) is restricted
    kinds = [kind_of(item) for item in build_desired(endpoint(spec), settings, None)]
    assert (NETWORK_POLICY in kinds) is restricted


def test_it_stands_before_there_are_pods():
    kinds = [kind_of(item).kind for item in build_desired(endpoint(), defaults(), None)]
    assert kinds.index("NetworkPolicy") < kinds.index("Deployment")


@pytest.mark.parametrize(
    ("model", "env", "ports"),
    [
        (CLAIM, {}, ()),
        (HUB, {}, (443,)),
        (HUB, {"HF_ENDPOINT": "http://mirror.example:8080"}, (443, 8080)),
        (HUB, {"HF_ENDPOINT": "http://mirror.example/hub"}, (80, 443)),
        (CLAIM, {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector"}, (443,)),
        (CLAIM, {"https_proxy": "proxy.example:3128", "NO_PROXY": "x:1"}, (3128,)),
        (CLAIM, {"HTTPS_PROXY": "http://user:secret@[fd00::1]:3128"}, (3128,)),
        (CLAIM, {"HTTP_PROXY": "http://proxy:3128"}, (3128,)),
        (CLAIM, {"ALL_PROXY": "http://proxy:3129"}, (3129,)),
        (CLAIM, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, (4318,)),
        (CLAIM, {"HTTP_PROXY": ""}, ()),
        (CLAIM, {"HTTP_PROXY": "http://proxy:many"}, ()),
        (CLAIM, {"HTTP_PROXY": "socks5://proxy"}, ()),
        (CLAIM, {"ALL_PROXY": "http://[fd00"}, ()),
        (CLAIM, {"OTHER": "http://somewhere:99"}, ()),
    ],
)
def test_addresses_in_the_environment_can_be_reached(model, env, ports):
    spec = model | {"runtime": {"env": [{"name": name, "value": value} for name, value in env.items()]}}
    assert find_destination_ports(endpoint(spec), None) == ports


def test_an_address_from_a_secret_is_not_known():
    env = [{"name": "HTTPS_PROXY", "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}}}]
    assert find_destination_ports(endpoint(CLAIM | {"runtime": {"env": env}}), None) == ()


@pytest.mark.parametrize(("model", "ports"), [(HUB, (443, 8080)), (CLAIM, ())])
def test_the_charts_hub_can_be_reached_by_who_needs_it(model, ports):
    assert find_destination_ports(endpoint(model), "http://hub.example:8080") == ports


def narrow(policy):
    policy["spec"]["ingress"][0]["from"] = [in_namespace("one")]


def widen(policy):
    del policy["spec"]["ingress"][1]["from"]


def miss(policy):
    policy["spec"]["podSelector"]["matchExpressions"] = [{"key": "a", "operator": "Exists"}]


def miss_by_label(policy):
    policy["spec"]["podSelector"]["matchLabels"]["a"] = "b"


def open_out(policy):
    policy["spec"]["egress"].append({})


@pytest.mark.parametrize("edit", [narrow, widen, miss, miss_by_label, open_out])
def test_an_edit_that_changes_what_it_means_is_drift(edit):
    desired = build_desired(endpoint(), defaults(), None)
    children = {(kind_of(item), item["metadata"]["name"]): as_child(item) for item in desired}
    assert plan_writes(endpoint(), desired, Observed(children)).drifted == ()
    edit(children[NETWORK_POLICY, "chat"])
    ((manifest, _),) = plan_writes(endpoint(), desired, Observed(children)).drifted
    assert kind_of(manifest) == NETWORK_POLICY


def test_a_list_that_the_api_server_drops_is_no_drift():
    """Else each pass would write what is there already."""
    peer = {"ipBlock": {"cidr": "10.0.0.0/8", "except": []}}
    spec = HUB | {"networkPolicy": {"allowFrom": [peer]}}
    desired = build_desired(endpoint(spec), defaults(), None)
    children = {(kind_of(item), item["metadata"]["name"]): as_child(item) for item in desired}
    stored = children[NETWORK_POLICY, "chat"]["spec"]["ingress"][0]["from"][0]["ipBlock"]
    del stored["except"]
    assert plan_writes(endpoint(spec), desired, Observed(children)).drifted == ()


def test_an_empty_selector_is_not_nothing():
    spec = HUB | {"networkPolicy": {"allowFrom": [{"namespaceSelector": {}, "podSelector": {}}]}}
    desired = build_desired(endpoint(spec), defaults(), None)
    children = {(kind_of(item), item["metadata"]["name"]): as_child(item) for item in desired}
    del children[NETWORK_POLICY, "chat"]["spec"]["ingress"][0]["from"][0]["namespaceSelector"]
    assert [kind_of(item) for item, _ in plan_writes(endpoint(spec), desired, Observed(children)).drifted] == [
        NETWORK_POLICY
    ]


def test_the_port_of_the_operators_hub_is_open_to_what_downloads():
    assert find_destination_ports(endpoint(HUB), "http://hub.example.com:8080") == (443, 8080)
    assert find_destination_ports(endpoint(HUB), "http://hub.example.com") == (80, 443)
    assert find_destination_ports(endpoint(CLAIM), "http://hub.example.com:8080") == ()
    mirrored = replace(defaults(), hub_endpoint="http://hub.example.com:8080")
    ports = [
        port["port"] for rule in build_network_policy(endpoint(), mirrored)["spec"]["egress"] for port in rule["ports"]
    ]
    assert 8080 in ports
