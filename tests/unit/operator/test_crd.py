"""The CRD against the code, and against the list of what reviewers look for."""

from __future__ import annotations

import copy

import pytest
import yaml

from dedicate_operator import names, parsing
from tests.unit.operator.builders import CRD_FILE, walk

CRD = yaml.safe_load(CRD_FILE.read_text())
VERSION = CRD["spec"]["versions"][0]
SCHEMA = VERSION["schema"]["openAPIV3Schema"]


NODES = list(walk(SCHEMA))
PATHS = [path for path, _ in NODES]


@pytest.mark.parametrize(("path", "schema"), NODES, ids=PATHS)
def test_field_is_described_and_bounded(path, schema):
    if path != "$.metadata":
        assert schema.get("description", "").endswith("."), path
    kind = schema.get("type")
    if kind == "string":
        assert "maxLength" in schema or "enum" in schema or "format" in schema
    if kind == "integer":
        assert {"minimum", "maximum"} <= schema.keys()
    if kind == "array":
        assert "maxItems" in schema
        assert "x-kubernetes-list-type" in schema
    if "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields"):
        assert "maxProperties" in schema
    assert kind != "number", "floats are not portable"


@pytest.mark.parametrize(
    ("path", "rule"), [(path, rule) for path, schema in NODES for rule in schema.get("x-kubernetes-validations", [])]
)
def test_rule_tells_what_is_wrong_and_where(path, rule):
    assert {"message", "reason"} <= rule.keys()
    schema = dict(NODES)[path]
    speaks_of_the_whole = schema.get("type") != "object" or "exactly one of" in rule["message"]
    assert speaks_of_the_whole or "fieldPath" in rule


def test_size_is_far_below_the_limit():
    assert CRD_FILE.stat().st_size < 256 * 1024


def test_names_are_the_codes():
    assert CRD["spec"]["group"] == names.GROUP
    assert VERSION["name"] == names.VERSION
    assert CRD["spec"]["names"]["kind"] == names.KIND
    assert CRD["spec"]["names"]["plural"] == names.PLURAL
    assert CRD["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"
    assert CRD["spec"]["names"]["shortNames"] == ["de", "dedicated"]
    assert CRD["spec"]["names"]["categories"] == ["serving"]
    assert VERSION["subresources"].keys() == {"status", "scale"}


def test_reserved_segments_are_the_codes():
    rule = next(rule for rule in SCHEMA["x-kubernetes-validations"] if " in [" in rule["rule"])
    listed = rule["rule"].rpartition("[")[2].rstrip(")]").replace("'", "").split(", ")
    assert set(listed) == parsing.RESERVED_SEGMENTS


def test_printer_columns_point_at_fields_that_exist():
    paths = {path.replace("$", "", 1) for path in PATHS}
    for column in VERSION["additionalPrinterColumns"]:
        path = column["jsonPath"]
        if path.startswith(".status.conditions"):
            assert f".status.conditions[].{path.rpartition('.')[2]}" in paths
        elif not path.startswith(".metadata"):
            assert path in paths


def fill_defaults(schema, value):
    """Do what the API server does to an object."""
    for name, child in schema.get("properties", {}).items():
        if name not in value and "default" in child:
            value[name] = copy.deepcopy(child["default"])
        if isinstance(value.get(name), dict):
            fill_defaults(child, value[name])
    return value


@pytest.mark.parametrize(
    "smallest",
    [
        {"model": {"uri": "hf://a/b"}},
        {"model": {"uri": "hf://a/b", "tokenSecretRef": {"name": "t"}}},
        {"model": {"uri": "pvc://a"}},
        {"model": {"uri": "hf://a/b"}, "cache": {"persistentVolumeClaim": {"size": "1Gi"}}},
        {"model": {"uri": "hf://a/b"}, "autoscaling": {"maxReplicas": 2, "metric": {"targetValue": 8}}},
        {"model": {"uri": "hf://a/b"}, "auth": {"limitsConfigMapRef": {"name": "limits"}}},
    ],
)
def test_defaults_of_crd_and_code_are_the_same(smallest):
    def parse(values):
        return parsing.parse_endpoint({"metadata": {"namespace": "n", "name": "x", "uid": "u"}, "spec": values}).spec

    filled = fill_defaults(SCHEMA["properties"]["spec"], copy.deepcopy(smallest))
    assert filled != smallest
    assert parse(filled) == parse(smallest)
