"""The tables of docs/contract.md are the code's own."""

from collections import Counter

import pytest

from dedicate_operator import names
from dedicate_operator.autoscaler import build_autoscaler
from dedicate_operator.diagnosis import EXIT_REASONS
from dedicate_operator.disruption import build_disruption_budget
from dedicate_operator.errors import SettingsError
from dedicate_operator.httproute import build_http_route
from dedicate_operator.ingress import build_ingress
from dedicate_operator.kinds import AUTOSCALER, SCALED_OBJECT
from dedicate_operator.manifests import build_deployment, build_keys_secret, build_service
from dedicate_operator.networkpolicy import build_network_policy
from dedicate_operator.observed import Observed
from dedicate_operator.placement import place_route
from dedicate_operator.routes import ParentRef
from dedicate_operator.settings import Settings as OperatorSettings
from dedicate_runtime.errors import ExitCode
from dev.chart import render


@pytest.fixture(scope="module")
def operator_container():
    (deployment,) = (item for item in render() if item["kind"] == "Deployment")
    return deployment["spec"]["template"]["spec"]["containers"][0]


def strip(cell):
    return cell.strip("`")


TABLES = [
    "Arguments of the runtime",
    "Arguments of the download",
    "Ports, probes",
    "Files and environment",
    "Exit codes",
    "Names and labels",
    "The operator's environment",
]


@pytest.mark.parametrize("heading", TABLES)
def test_no_row_stands_twice(heading, contract):
    first = [next(iter(row.values())) for row in contract.table(heading)]
    assert [cell for cell, count in Counter(first).items() if count > 1] == []


class TestExitCodes:
    def test_document_runtime_and_operator_agree(self, contract):
        documented = {
            int(row["code"]): strip(row["reason"]) for row in contract.table("Exit codes") if row["code"] != "0"
        }
        assert documented == dict(EXIT_REASONS)
        assert documented == {code.value: "".join(map(str.title, code.name.split("_"))) for code in ExitCode}


class TestOperatorEnvironment:
    @pytest.fixture
    def rows(self, contract):
        return {strip(row["variable"]): row["default"] for row in contract.table("The operator's environment")}

    def test_the_chart_sets_each_variable_and_no_other(self, operator_container, rows):
        assert [item["name"] for item in operator_container["env"]] == list(rows)

    def test_the_operator_reads_what_the_chart_writes(self, operator_container):
        # The chart names the Lease after the release and knows who the operator's pods are and where metrics are
        # scraped from; everything else is the operator's own default.
        environment = {item["name"]: item.get("value", "") for item in operator_container["env"]}
        settings = OperatorSettings.from_environment(environment)
        management = "DEDICATE_NETWORK_POLICY_MANAGEMENT_FROM"
        own = {
            management: environment[management],
            "DEDICATE_RUNTIME_IMAGE": settings.defaults.image,
            "DEDICATE_LEASE_NAME": "dedicate",
            "DEDICATE_LEASE_NAMESPACE": "dedicate-system",
            "DEDICATE_METRICS_PORT": "8081",
        }
        assert settings == OperatorSettings.from_environment(own)

    def test_the_operator_reads_each_variable(self, rows):
        environment = {"DEDICATE_RUNTIME_IMAGE": "runtime:1"}
        for name in rows:
            with pytest.raises(SettingsError, match=name):
                OperatorSettings.from_environment(environment | {name: "**"})

    def test_values_arrive(self):
        values = {
            "watch": {"namespaces": ["team-b", "team-a"]},
            "runtime": {
                "image": {"repository": "localhost:5000/runtime", "tag": "2"},
                "imagePullSecrets": ["registry"],
            },
            "route": {
                "type": "HTTPRoute",
                "host": "llm.example.com",
                "className": "traefik",
                "controllerProfile": "NGINX",
                "parentRefs": [{"namespace": "infra", "name": "public", "sectionName": "web", "port": 8080}],
                "externalScheme": "https",
                "externalPort": 8080,
                "externalTLSPort": 8443,
            },
            "autoscaling": {"prometheusUrl": "http://prometheus.monitoring:9090"},
            "models": {"hubEndpoint": "http://hub.example.com:8080/mirror"},
            "logging": {"format": "plain", "level": "debug"},
            "ports": {"liveness": 8181, "metrics": 8282},
            "networkPolicy": {
                "endpoints": {
                    "mode": "None",
                    "allowFrom": [{"podSelector": {}}],
                    "metricsFrom": [{"namespaceSelector": {}}],
                    "extraEgress": [{"ports": [{"port": 3128}]}],
                }
            },
        }
        (deployment,) = (item for item in render(values) if item["kind"] == "Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        settings = OperatorSettings.from_environment({item["name"]: item.get("value", "") for item in container["env"]})
        assert settings.watch_namespaces == ("team-a", "team-b")
        assert settings.defaults.image == "localhost:5000/runtime:2"
        assert settings.defaults.image_pull_secrets == ("registry",)
        assert settings.defaults.route_host == "llm.example.com"
        assert settings.defaults.route_class_name == "traefik"
        assert settings.defaults.prometheus_url == "http://prometheus.monitoring:9090"
        assert settings.defaults.network_policy.mode == "None"
        assert settings.defaults.network_policy.allow_from == ({"podSelector": {}},)
        operator, monitoring = settings.defaults.network_policy.management_from
        assert operator["podSelector"]["matchLabels"] == deployment["spec"]["selector"]["matchLabels"]
        assert monitoring == {"namespaceSelector": {}}
        assert settings.defaults.network_policy.extra_egress == ({"ports": [{"port": 3128}]},)
        assert settings.defaults.route_type == "HTTPRoute"
        assert settings.defaults.route_controller_profile == "NGINX"
        assert settings.defaults.route_parent_refs == (ParentRef("public", "infra", "web", 8080),)
        assert settings.defaults.route_external_scheme == "https"
        assert settings.defaults.route_external_port == 8080
        assert settings.defaults.route_external_tls_port == 8443
        assert settings.defaults.hub_endpoint == "http://hub.example.com:8080/mirror"
        assert (settings.log_format, settings.log_level) == ("plain", "debug")
        assert settings.liveness_port == 8181 == container["ports"][0]["containerPort"]
        assert settings.metrics_port == 8282 == container["ports"][1]["containerPort"]

    def test_defaults_are_told(self, rows):
        settings = OperatorSettings.from_environment({"DEDICATE_RUNTIME_IMAGE": "runtime:1"})
        assert rows["DEDICATE_RUNTIME_IMAGE"] == "required"
        assert strip(rows["DEDICATE_LEASE_NAME"]) == settings.lease_name
        assert strip(rows["DEDICATE_NETWORK_POLICY_MODE"]) == settings.defaults.network_policy.mode
        assert strip(rows["DEDICATE_ROUTE_TYPE"]) == settings.defaults.route_type
        assert strip(rows["DEDICATE_ROUTE_CONTROLLER_PROFILE"]) == settings.defaults.route_controller_profile
        assert strip(rows["DEDICATE_LOG_FORMAT"]) == settings.log_format
        assert strip(rows["DEDICATE_LOG_LEVEL"]) == settings.log_level
        assert rows["DEDICATE_LIVENESS_PORT"] == str(settings.liveness_port)
        empty = {name for name, default in rows.items() if default.startswith("empty")}
        assert empty == set(rows) - {
            "DEDICATE_RUNTIME_IMAGE",
            "DEDICATE_LEASE_NAME",
            "DEDICATE_NETWORK_POLICY_MODE",
            "DEDICATE_ROUTE_TYPE",
            "DEDICATE_ROUTE_CONTROLLER_PROFILE",
            "DEDICATE_LOG_FORMAT",
            "DEDICATE_LOG_LEVEL",
            "DEDICATE_LIVENESS_PORT",
        }


class TestNamesAndLabels:
    def test_children_carry_the_labels(self, contract, endpoint, defaults):
        section = contract.text.split("## Names and labels\n")[1]
        name = endpoint.key.name
        for child in (
            build_deployment(endpoint, defaults),
            build_service(endpoint),
            build_ingress(endpoint, place_route(endpoint, defaults)),
            build_http_route(endpoint, place_route(endpoint, defaults)),
            build_disruption_budget(endpoint),
            build_keys_secret(endpoint, "key"),
        ):
            for label, value in child["metadata"]["labels"].items():
                documented = "<CR name>" if value == name else value
                assert f"`{label}: {documented}`" in section

    def test_names(self, contract, endpoint, defaults):
        name = endpoint.key.name
        table = contract.table("Names and labels")
        rows = {row["child"]: strip(row["name"]).replace("<CR name>", name) for row in table}
        assert rows["Deployment, Service, Ingress, HTTPRoute, NetworkPolicy"] == name
        placement = place_route(endpoint, defaults)
        for child in (
            build_deployment(endpoint, defaults),
            build_service(endpoint),
            build_ingress(endpoint, placement),
            build_http_route(endpoint, placement),
            build_network_policy(endpoint, defaults),
        ):
            assert child["metadata"]["name"] == name
        assert rows["PodDisruptionBudget, HorizontalPodAutoscaler or ScaledObject"] == name
        scalers = [build_autoscaler(endpoint, defaults, kind, Observed()) for kind in (AUTOSCALER, SCALED_OBJECT)]
        for child in (build_disruption_budget(endpoint), *filter(None, scalers)):
            assert child["metadata"]["name"] == name
        secret = build_keys_secret(endpoint, "key")
        assert rows["Secret with the generated key (key `default`)"] == secret["metadata"]["name"]
        assert secret["data"].keys() == {"default"}
        assert rows["cache claim"] == names.cache_claim_name(name)

    def test_pods_are_selected_by_the_endpoint_alone(self, endpoint, defaults):
        spec = build_deployment(endpoint, defaults)["spec"]
        selector = {"dedicate.dev/endpoint": endpoint.key.name}
        assert spec["selector"]["matchLabels"] == selector
        assert build_service(endpoint)["spec"]["selector"] == selector
        assert selector.items() <= spec["template"]["metadata"]["labels"].items()
        assert build_network_policy(endpoint, defaults)["spec"]["podSelector"] == {"matchLabels": selector}


class TestFiles:
    def test_paths(self, contract):
        documented = {strip(row["path or variable"]) for row in contract.table("Files and environment")}
        folders = {names.KEYS_DIR, names.LIMITS_DIR, names.MODELS_DIR, names.CACHE_DIR, names.TMP_DIR, names.SHM_DIR}
        assert documented == folders | {names.PIN_DIR, "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE=1"}
