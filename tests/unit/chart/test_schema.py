"""values.schema.json is applied, closed at each level, and refuses what it should."""

import json

import pytest
import yaml
from jsonschema import Draft7Validator

from dev.chart import CHART, ChartError, render
from dev.derived import iterate_values
from tests.unit.chart.rendered import container

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = (CHART / "values.yaml").read_text()

WRONG = [
    ({"unknown": 1}, "unknown"),
    ({"operator": {"image": {"repo": "x"}}}, "repo"),
    ({"operator": {"image": {"repository": "Upper/Case"}}}, "repository"),
    ({"operator": {"image": {"repository": "name:tag"}}}, "repository"),
    ({"operator": {"image": {"repository": None}}}, "repository"),
    ({"operator": {"image": {"tag": "a b"}}}, "tag"),
    ({"operator": {"image": {"tag": 1.0}}}, "tag"),
    ({"operator": {"image": {"digest": "sha256:abc"}}}, "digest"),
    ({"operator": {"image": {"pullPolicy": "always"}}}, "pullPolicy"),
    ({"runtime": {"image": {"pullPolicy": "Always"}}}, "pullPolicy"),
    ({"runtime": {"image": {"digest": "latest"}}}, "digest"),
    ({"runtime": {"imagePullSecrets": [{"name": "registry"}]}}, "imagePullSecrets"),
    ({"imagePullSecrets": ["registry"]}, "imagePullSecrets"),
    ({"imagePullSecrets": [{"name": "registry", "key": "x"}]}, "key"),
    ({"replicas": 6}, "replicas"),
    ({"replicas": -1}, "replicas"),
    ({"replicas": "1"}, "replicas"),
    ({"watch": {"namespaces": "default"}}, "namespaces"),
    ({"watch": {"namespaces": ["Default"]}}, "namespaces"),
    ({"watch": {"namespaces": ["a", "a"]}}, "namespaces"),
    ({"serviceAccount": {"tokenExpirationSeconds": 599}}, "tokenExpirationSeconds"),
    ({"route": {"host": "http://llm.example.com"}}, "host"),
    ({"route": {"host": "*.example.com"}}, "host"),
    ({"route": {"type": "None"}}, "type"),
    ({"route": {"controllerProfile": "Nginx"}}, "controllerProfile"),
    ({"route": {"parentRefs": [{"namespace": "infra"}]}}, "name"),
    ({"route": {"parentRefs": [{"name": "public", "kind": "Service"}]}}, "kind"),
    ({"route": {"externalScheme": "h2"}}, "externalScheme"),
    ({"route": {"externalTLSPort": 0}}, "externalTLSPort"),
    ({"route": {"externalPort": 0}}, "externalPort"),
    ({"route": {"externalPort": 65536}}, "externalPort"),
    ({"autoscaling": {"prometheusUrl": "prometheus:9090"}}, "prometheusUrl"),
    ({"models": {"hubEndpoint": "hub.example.com"}}, "hubEndpoint"),
    ({"models": {"hubEndpoint": "http://hub.example.com:port"}}, "hubEndpoint"),
    ({"logging": {"format": "text"}}, "format"),
    ({"logging": {"level": "INFO"}}, "level"),
    ({"ports": {"liveness": 80}}, "liveness"),
    ({"ports": {"metrics": 65536}}, "metrics"),
    ({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}}, "serviceMonitor"),
    ({"metrics": {"enabled": False, "prometheusRule": {"enabled": True}}}, "prometheusRule"),
    ({"metrics": {"podMonitor": {"interval": "15"}}}, "interval"),
    ({"metrics": {"prometheusRule": {"alertLabels": {"severity": "page"}}}}, "severity"),
    ({"metrics": {"prometheusRule": {"runbookUrl": "runbook.md"}}}, "runbookUrl"),
    ({"metrics": {"prometheusRule": {"endpointNotReadyFor": "1 hour"}}}, "endpointNotReadyFor"),
    ({"metrics": {"dashboards": {"label": "a b"}}}, "label"),
    ({"networkPolicy": {"metricsFrom": [{}]}}, "metricsFrom"),
    ({"networkPolicy": {"metricsFrom": [{"namespace": "monitoring"}]}}, "namespace"),
    ({"podSecurityContext": {"runAsUser": 0}}, "runAsUser"),
    ({"podSecurityContext": {"privileged": True}}, "privileged"),
    ({"resources": {"limits": {"cpu": "one"}}}, "cpu"),
    ({"resources": {"limits": {"gpu": 1}}}, "gpu"),
    ({"extraEnv": [{"name": "A", "value": 1}]}, "value"),
    ({"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {}}}]}, "extraEnv"),
    ({"extraEnv": [{"name": "DEDICATE_LOG_LEVEL", "value": "debug"}]}, "name"),
    ({"podLabels": {"team": 1}}, "team"),
    ({"tolerations": [{"effect": "Never"}]}, "effect"),
    ({"affinity": {"nodeAfinity": {}}}, "nodeAfinity"),
    ({"topologySpreadConstraints": [{"maxSkew": 1}]}, "topologyKey"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "maxUnavailable"),
    ({"networkPolicy": {"enabled": "yes"}}, "enabled"),
    ({"networkPolicy": {"apiServer": {"ports": []}}}, "ports"),
    ({"networkPolicy": {"apiServer": {"cidrs": ["10.0.0.1"]}}}, "cidrs"),
    ({"networkPolicy": {"endpoints": {"mode": "none"}}}, "mode"),
    ({"networkPolicy": {"endpoints": {"allowFrom": ["traefik"]}}}, "allowFrom"),
    ({"networkPolicy": {"endpoints": {"allowFrom": [{}]}}}, "allowFrom"),
    ({"networkPolicy": {"endpoints": {"metricsFrom": [{"namespace": "monitoring"}]}}}, "namespace"),
    ({"networkPolicy": {"endpoints": {"extraEgress": [{"from": []}]}}}, "from"),
    ({"crds": {"install": "true"}}, "install"),
    ({"tests": {"endpoint": {"url": "llm.example.com"}}}, "url"),
]


@pytest.mark.parametrize(("values", "complaint"), WRONG, ids=[json.dumps(values) for values, _ in WRONG])
def test_a_wrong_value_is_refused_and_named(values, complaint):
    with pytest.raises(ChartError) as refusal:
        render(values)
    assert "values don't meet the specifications of the schema" in str(refusal.value)
    assert complaint in str(refusal.value)


def test_what_the_chart_sets_itself_is_refused_in_extra_env():
    refused = SCHEMA["properties"]["extraEnv"]["items"]["properties"]["name"]["not"]["enum"]
    assert sorted(refused) == sorted(variable["name"] for variable in container()["env"])


def test_global_is_open_for_parent_charts():
    assert render({"global": {"anything": {"goes": 1}}})


def iterate_schemas(schema, path="$"):
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from iterate_schemas(inner, f"{path}.{name}")
    for name, inner in schema.get("definitions", {}).items():
        yield from iterate_schemas(inner, f"{path}#{name}")
    if "items" in schema:
        yield from iterate_schemas(schema["items"], f"{path}[]")


def test_each_level_is_closed_and_each_value_typed():
    # Inside these stand types of Kubernetes, which the API server checks.
    open_on_purpose = (
        "$.global",
        "$.affinity.",
        ".valueFrom",
        ".labelSelector",
        "#egressRules[].",
        "#peers[].",
        "$.networkPolicy.metricsFrom[].",
    )
    for path, schema in iterate_schemas(SCHEMA):
        assert {"type", "enum", "$ref", "anyOf"} & schema.keys(), f"{path} has no type"
        if schema.get("type") == "object" and not any(mark in path for mark in open_on_purpose):
            assert schema.get("additionalProperties") is not None, f"{path} is open"


def test_the_schema_knows_each_value_and_no_other():
    def leaves(schema, prefix=""):
        if "$ref" in schema:
            schema = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        properties = schema.get("properties")
        if not properties or prefix.startswith("affinity"):
            yield prefix.removesuffix(".")
            return
        for name, inner in properties.items():
            yield from leaves(inner, f"{prefix}{name}.")

    assert {path for path, _, _ in iterate_values(VALUES)} == set(leaves(SCHEMA))


def test_each_value_has_a_comment():
    undocumented = [path for path, _, comment in iterate_values(VALUES) if not comment]
    assert undocumented == []


def test_lists_are_bounded():
    for path, schema in iterate_schemas(SCHEMA):
        if schema.get("type") == "array":
            is_open = any(mark in path for mark in ("matchLabelKeys", "#egressRules[]."))
            assert is_open or "maxItems" in schema, f"{path} has no maxItems"


def test_defaults_meet_the_schema():
    assert yaml.safe_load(VALUES)["replicas"] == 2
    assert render()


VALIDATOR = Draft7Validator(SCHEMA)
# Of another type than what is meant, whatever that is.
OTHERS = {"string": 7, "integer": "seven", "number": "seven", "boolean": "true", "array": {"a": 1}, "object": [1]}


def resolve(schema):
    return SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema


def iterate_wrong(schema):
    """A value just beyond each limit that the schema sets for one value."""
    if "enum" in schema:
        yield "nonsense"
    type_ = schema.get("type")
    yield OTHERS[type_ if isinstance(type_, str) else type_[0]] if type_ else True
    if "pattern" in schema:
        yield "a b"
        yield "x" * 5000
    if "minimum" in schema:
        yield schema["minimum"] - 1
    if "maximum" in schema:
        yield schema["maximum"] + 1
    if "maxItems" in schema:
        yield [{"name": f"n{index}"} for index in range(schema["maxItems"] + 1)]
    if schema.get("uniqueItems"):
        yield ["same", "same"]
    if isinstance(schema.get("additionalProperties"), dict):
        yield {"key": {"a": "map"}}
        yield {f"key{index}": "x" for index in range(schema.get("maxProperties", 99) + 1)}
    if schema.get("additionalProperties") is False:
        yield {"unheardOf": 1}


def iterate_places(schema, path=()):
    """Every value and every level below it, with its schema."""
    schema = resolve(schema)
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from iterate_places(inner, (*path, name))


PLACES = {".".join(path): (path, schema) for path, schema in iterate_places(SCHEMA) if path and path[0] != "global"}


@pytest.mark.parametrize("name", PLACES)
def test_each_place_refuses_what_is_just_beyond_its_limits(name):
    path, schema = PLACES[name]
    wrong = list(iterate_wrong(schema))
    assert wrong
    for value in wrong:
        values = value
        for part in reversed(path):
            values = {part: values}
        complaints = [".".join(map(str, error.absolute_path)) for error in VALIDATOR.iter_errors(values)]
        assert any(complaint.startswith(name) for complaint in complaints), value


def test_the_first_level_refuses_unknown_names():
    """Those below it have places of their own above."""
    assert not VALIDATOR.is_valid({"unheardOf": 1})
