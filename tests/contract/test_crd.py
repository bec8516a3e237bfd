"""The CRD, what the operator's parser reads, and the documentation describe the same fields."""

import re
from collections.abc import Mapping

import jsonschema
import pytest

from dedicate_operator import names
from dedicate_operator.parsing import parse_endpoint

# What stands below these is Kubernetes' own; the parser takes it whole.
WHOLE = (
    "runtime.env[]",
    "resources.requests",
    "resources.limits",
    "scheduling.nodeSelector",
    "scheduling.tolerations[]",
    "scheduling.affinity",
    "scheduling.topologySpreadConstraints[]",
)


def iterate_paths(schema, prefix=""):
    """Paths of all fields of a schema, parents before children; items of lists as `[]`."""
    for name, inner in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield path, inner
        yield from iterate_paths(inner, f"{path}.")
        if "items" in inner:
            yield f"{path}[]", inner["items"]
            yield from iterate_paths(inner["items"], f"{path}[].")


def is_inside_whole(path):
    return any(path.startswith(f"{whole}.") for whole in WHOLE)


class Recorder(Mapping):
    """An object that notes which of its fields are asked for."""

    def __init__(self, values, asked, path=""):
        self._values, self._asked, self._path = values, asked, path

    def _wrap(self, name):
        path = f"{self._path}{name}"
        self._asked.add(path)
        value = self._values[name]
        if path in WHOLE:
            return value
        if isinstance(value, dict):
            return Recorder(value, self._asked, f"{path}.")
        if isinstance(value, list):
            if f"{path}[]" in WHOLE:
                return value
            return [Recorder(item, self._asked, f"{path}[].") if isinstance(item, dict) else item for item in value]
        return value

    def get(self, name, default=None):
        self._asked.add(f"{self._path}{name}")
        return self._wrap(name) if name in self._values else default

    def __getitem__(self, name):
        return self._wrap(name)

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)


HUB = {"uri": "hf://a/b", "tokenSecretRef": {"name": "hub"}}
# Together these take the parser down each of its branches.
PROBES = [
    {"model": HUB, "cache": {"emptyDir": {}}, "route": {"tls": {}}},
    {"model": HUB, "cache": {"persistentVolumeClaim": {"size": "1Gi"}}, "auth": {"apiKeysSecretRef": {"name": "a"}}},
    {"model": HUB, "auth": {"limitsConfigMapRef": {"name": "a"}}},
    {"model": HUB, "cache": {"existingClaim": {"name": "a"}}, "runtime": {"imagePullSecrets": [{"name": "a"}]}},
    {"model": {"uri": "pvc://claim/path"}, "autoscaling": {"maxReplicas": 2, "metric": {"targetValue": 8}}},
    {"model": {"uri": "pvc://claim/path"}, "route": {"parentRefs": [{"name": "public"}]}},
]


def test_the_parser_reads_the_fields_of_the_crd_and_no_other(crd_schema, make_resource, fill_defaults):
    asked, spec_schema = set(), crd_schema["properties"]["spec"]
    objects = {name for name, inner in spec_schema["properties"].items() if inner["type"] == "object"}
    objects -= {"cache", "autoscaling"}
    for spec in PROBES:
        full = fill_defaults(spec_schema, {name: {} for name in objects} | spec)
        parse_endpoint(make_resource(Recorder(full, asked)))
    fields = {path for path, _ in iterate_paths(spec_schema) if not is_inside_whole(path)}
    assert asked == {path for path in fields if not path.endswith("[]")}


def test_the_crd_and_the_parser_have_the_same_defaults(crd_schema, make_resource, fill_defaults):
    for spec in [*PROBES, {"model": {"uri": "hf://a/b"}}]:
        stored = make_resource(spec)
        assert parse_endpoint(fill_defaults(crd_schema, stored)) == parse_endpoint(stored)


def test_a_resource_with_defaults_still_meets_the_schema(crd_schema, closed_schema, make_resource, fill_defaults):
    for spec in PROBES:
        jsonschema.validate(fill_defaults(crd_schema, make_resource(spec)), closed_schema)


def test_choices_are_those_of_the_parser(crd_schema, make_resource):
    """Each value of an enum is accepted, and one that is in none is refused by name."""
    for path, schema in iterate_paths(crd_schema["properties"]["spec"]):
        if "enum" not in schema or is_inside_whole(path):
            continue
        for choice in schema["enum"]:
            parse_endpoint(make_resource(nest(path, choice)))
        with pytest.raises(Exception, match=re.escape(path.rpartition(".")[2])):
            parse_endpoint(make_resource(nest(path, "Nonsense")))


def nest(path, value):
    tree = value
    for name in reversed(path.split(".")):
        tree = {name: tree}
    tree.setdefault("model", {}).setdefault("uri", "hf://a/b")
    if "persistentVolumeClaim" in path:
        tree["cache"]["persistentVolumeClaim"].setdefault("size", "1Gi")
    if "autoscaling" in path:
        tree["autoscaling"]["maxReplicas"] = 2
        tree["autoscaling"]["metric"].setdefault("targetValue", 8)
    return tree


def test_names(crd):
    spec = crd["spec"]
    assert spec["group"] == names.GROUP
    assert spec["names"]["kind"] == names.KIND
    assert spec["names"]["plural"] == names.PLURAL
    assert [version["name"] for version in spec["versions"]] == [names.VERSION]
    assert crd["metadata"]["name"] == f"{names.PLURAL}.{names.GROUP}"


class TestHygiene:
    """What a strict reviewer of CRDs asks for; docs/custom-resource.md explains the fields themselves."""

    @pytest.fixture
    def fields(self, crd_schema):
        return dict(iterate_paths(crd_schema))

    def test_every_field_is_described(self, fields):
        undescribed = [path for path, schema in fields.items() if not schema.get("description", "").strip()]
        assert undescribed == ["metadata"]  # the API server takes no more than a name there

    def test_every_string_is_bounded(self, fields):
        strings = {path: schema for path, schema in fields.items() if schema.get("type") == "string"}
        bounds = {"maxLength", "enum", "format"}
        assert [path for path, schema in strings.items() if not bounds & set(schema)] == []

    def test_every_integer_is_bounded(self, fields):
        loose = [
            path
            for path, schema in fields.items()
            if schema.get("type") == "integer" and not {"minimum", "maximum"} <= set(schema)
        ]
        assert loose == []

    def test_every_list_is_bounded_and_typed(self, fields):
        for path, schema in fields.items():
            if schema.get("type") == "array":
                assert "maxItems" in schema, path
                assert schema.get("x-kubernetes-list-type") in {"map", "set", "atomic"}, path

    def test_every_map_is_bounded(self, fields):
        for path, schema in fields.items():
            is_map = "additionalProperties" in schema or schema.get("x-kubernetes-preserve-unknown-fields")
            if is_map:
                assert "maxProperties" in schema, path

    def test_every_rule_names_its_field_in_the_message_and_has_a_reason(self, crd_schema, fields):
        rules = [
            (f"{path}{rule.get('fieldPath', '')}".removeprefix("."), rule)
            for path, schema in [("", crd_schema), *fields.items()]
            for rule in schema.get("x-kubernetes-validations", [])
        ]
        assert len(rules) > 10
        for path, rule in rules:
            assert path in fields, rule["rule"]
            assert rule["message"].startswith(("spec.", "metadata.")), rule["rule"]
            assert path.rpartition(".")[2] in rule["message"], rule["rule"]
            assert rule["reason"], rule["rule"]

    def test_printer_columns_point_at_fields(self, crd, fields):
        (version,) = crd["spec"]["versions"]
        for column in version["additionalPrinterColumns"]:
            path = re.sub(r"\[\?.*?\]", "[]", column["jsonPath"]).removeprefix(".")
            assert path in fields or path.startswith("metadata."), column["name"]

    def test_kubectl_get_shows_what_was_promised(self, crd):
        (version,) = crd["spec"]["versions"]
        columns = [item["name"].upper() for item in version["additionalPrinterColumns"] if not item.get("priority")]
        assert columns == ["READY", "REASON", "URL", "REPLICAS", "MODEL", "AGE"]

    def test_no_floats_and_camel_case_choices(self, fields):
        for path, schema in fields.items():
            assert schema.get("type") != "number", path
            for choice in schema.get("enum", []):
                assert choice[0].isupper(), path
