from __future__ import annotations

import pytest

from dedicate_operator.errors import SettingsError
from dedicate_operator.routes import ParentRef
from dedicate_operator.settings import EndpointDefaults, NetworkPolicyDefaults, Settings

SMALLEST = {"DEDICATE_RUNTIME_IMAGE": "registry/runtime:1"}


def test_defaults():
    assert Settings.from_environment(SMALLEST) == Settings(EndpointDefaults(image="registry/runtime:1"))


def test_every_variable():
    settings = Settings.from_environment(
        {
            "DEDICATE_RUNTIME_IMAGE": "registry:5000/runtime@sha256:abc",
            "DEDICATE_RUNTIME_IMAGE_PULL_SECRETS": "b, a,,a",
            "DEDICATE_WATCH_NAMESPACES": "team-b,team-a",
            "DEDICATE_LEASE_NAME": "dedicate",
            "DEDICATE_LEASE_NAMESPACE": "dedicate-system",
            "DEDICATE_ROUTE_HOST": "llm.example.com",
            "DEDICATE_ROUTE_CLASS_NAME": "traefik",
            "DEDICATE_ROUTE_TYPE": "HTTPRoute",
            "DEDICATE_ROUTE_CONTROLLER_PROFILE": "Traefik",
            "DEDICATE_ROUTE_PARENT_REFS": '[{"name": "public", "namespace": "infra"}, {"name": "own", "port": 8443}]',
            "DEDICATE_ROUTE_EXTERNAL_SCHEME": "https",
            "DEDICATE_ROUTE_EXTERNAL_PORT": "8080",
            "DEDICATE_PROMETHEUS_URL": "http://prometheus.monitoring:9090",
            "DEDICATE_HUB_ENDPOINT": "https://hub.example.com/mirror",
            "DEDICATE_NETWORK_POLICY_MODE": "None",
            "DEDICATE_NETWORK_POLICY_ALLOW_FROM": '[{"podSelector": {}}]',
            "DEDICATE_NETWORK_POLICY_MANAGEMENT_FROM": '[{"namespaceSelector": {}, "podSelector": {}}]',
            "DEDICATE_NETWORK_POLICY_EXTRA_EGRESS": '[{"to": [], "ports": [{"port": 3128}]}]',
            "DEDICATE_ROUTE_EXTERNAL_TLS_PORT": "8443",
            "DEDICATE_LOG_FORMAT": "plain",
            "DEDICATE_LOG_LEVEL": "debug",
            "DEDICATE_LIVENESS_PORT": "9999",
            "DEDICATE_METRICS_PORT": "9998",
        }
    )
    assert settings.defaults.image_pull_secrets == ("a", "b")
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert (settings.lease_name, settings.lease_namespace) == ("dedicate", "dedicate-system")
    assert settings.defaults.route_host == "llm.example.com"
    assert settings.defaults.route_class_name == "traefik"
    assert settings.defaults.route_type == "HTTPRoute"
    assert settings.defaults.route_controller_profile == "Traefik"
    assert settings.defaults.route_parent_refs == (ParentRef("public", "infra"), ParentRef("own", port=8443))
    assert settings.defaults.route_external_scheme == "https"
    assert settings.defaults.route_external_port == 8080
    assert settings.defaults.prometheus_url == "http://prometheus.monitoring:9090"
    assert settings.defaults.hub_endpoint == "https://hub.example.com/mirror"
    assert settings.defaults.network_policy == NetworkPolicyDefaults(
        mode="None",
        allow_from=({"podSelector": {}},),
        management_from=({"namespaceSelector": {}, "podSelector": {}},),
        extra_egress=({"to": [], "ports": [{"port": 3128}]},),
    )
    assert settings.defaults.route_external_tls_port == 8443
    assert (settings.log_format, settings.log_level, settings.liveness_port) == ("plain", "debug", 9999)
    assert settings.metrics_port == 9998


def test_empty_means_absent():
    names = (
        "ROUTE_HOST",
        "ROUTE_CLASS_NAME",
        "ROUTE_TYPE",
        "ROUTE_CONTROLLER_PROFILE",
        "ROUTE_PARENT_REFS",
        "ROUTE_EXTERNAL_SCHEME",
        "ROUTE_EXTERNAL_PORT",
        "ROUTE_EXTERNAL_TLS_PORT",
        "WATCH_NAMESPACES",
        "PROMETHEUS_URL",
        "HUB_ENDPOINT",
        "LEASE_NAME",
        "LEASE_NAMESPACE",
        "METRICS_PORT",
    )
    empty = {f"DEDICATE_{name}": " " for name in names}
    assert Settings.from_environment(SMALLEST | empty) == Settings.from_environment(SMALLEST)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEDICATE_RUNTIME_IMAGE", ""),
        ("DEDICATE_RUNTIME_IMAGE", "two words"),
        ("DEDICATE_WATCH_NAMESPACES", "Team"),
        ("DEDICATE_WATCH_NAMESPACES", "a;b"),
        ("DEDICATE_ROUTE_TYPE", "None"),
        ("DEDICATE_ROUTE_CONTROLLER_PROFILE", "nginx"),
        ("DEDICATE_ROUTE_PARENT_REFS", "public"),
        ("DEDICATE_ROUTE_PARENT_REFS", '{"name": "public"}'),
        ("DEDICATE_ROUTE_PARENT_REFS", '[{"namespace": "infra"}]'),
        ("DEDICATE_ROUTE_EXTERNAL_SCHEME", "ftp"),
        ("DEDICATE_LEASE_NAME", "Dedicate"),
        ("DEDICATE_LEASE_NAMESPACE", "a.b"),
        ("DEDICATE_ROUTE_HOST", "http://x"),
        ("DEDICATE_ROUTE_CLASS_NAME", "a b"),
        ("DEDICATE_ROUTE_EXTERNAL_PORT", "0"),
        ("DEDICATE_ROUTE_EXTERNAL_PORT", "65536"),
        ("DEDICATE_ROUTE_EXTERNAL_PORT", "²"),
        ("DEDICATE_PROMETHEUS_URL", "prometheus:9090"),
        ("DEDICATE_HUB_ENDPOINT", "ftp://hub"),
        ("DEDICATE_NETWORK_POLICY_MODE", "Open"),
        ("DEDICATE_NETWORK_POLICY_ALLOW_FROM", "[{]"),
        ("DEDICATE_NETWORK_POLICY_ALLOW_FROM", "{}"),
        ("DEDICATE_NETWORK_POLICY_ALLOW_FROM", '["team"]'),
        ("DEDICATE_NETWORK_POLICY_ALLOW_FROM", "[{}]"),
        ("DEDICATE_NETWORK_POLICY_MANAGEMENT_FROM", '[{"namespace": "team"}]'),
        ("DEDICATE_NETWORK_POLICY_EXTRA_EGRESS", '[{"from": []}]'),
        ("DEDICATE_PROMETHEUS_URL", "http://prometheus:port"),
        ("DEDICATE_HUB_ENDPOINT", "hub.example.com"),
        ("DEDICATE_LOG_FORMAT", "xml"),
        ("DEDICATE_LOG_LEVEL", "loud"),
        ("DEDICATE_LIVENESS_PORT", "eighty"),
        ("DEDICATE_METRICS_PORT", "0"),
    ],
)
def test_unusable_value_is_named(name, value):
    with pytest.raises(SettingsError, match=name):
        Settings.from_environment(SMALLEST | {name: value})
