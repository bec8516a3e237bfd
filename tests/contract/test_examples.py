"""Each example is what the CRD takes and what the operator can serve."""

import jsonschema
import pytest
import yaml

from dedicate_operator.parsing import parse_endpoint
from dedicate_runtime.api.limits import Limits
from dedicate_runtime.api.limits_file import parse_limits
from tests.contract.resources import EXAMPLES, read_example


def validate(text, schema):
    validator = jsonschema.Draft7Validator(schema)
    for resource in yaml.safe_load_all(text):
        if resource.get("kind") == "DedicatedEndpoint":
            validator.validate(resource)


@pytest.fixture(params=EXAMPLES, ids=lambda path: path.stem)
def example(request):
    return request.param


def test_there_is_one_for_each_promise():
    assert {path.stem for path in EXAMPLES} == {
        "smallest",
        "private-hub-model",
        "pvc-model",
        "cpu-only",
        "two-replicas",
        "limits",
        "autoscaling",
        "autoscaling-hpa",
        "autoscaling-keda",
        "httproute",
        "tls",
        "gated-model-shared-cache",
    }


def test_it_meets_the_schema(example, closed_schema):
    validate(example.read_text(), closed_schema)


def test_it_is_one_commented_resource_without_a_namespace(example):
    """What the resource refers to may stand before it."""
    text = example.read_text()
    *beside, resource = yaml.safe_load_all(text)
    assert (resource["apiVersion"], resource["kind"]) == ("dedicate.dev/v1alpha1", "DedicatedEndpoint")
    assert {item["kind"] for item in beside} <= {"ConfigMap", "HorizontalPodAutoscaler", "ScaledObject"}
    assert all("namespace" not in item["metadata"] for item in [*beside, resource])
    assert text.startswith("# ")


@pytest.mark.parametrize(
    ("path", "num_files"), [("examples/limits.yaml", 1), ("docs/user-guide.md", 1)], ids=["example", "guide"]
)
def test_limits_are_what_the_runtime_takes(path, num_files, document):
    """Each ConfigMap that an endpoint takes its limits from has them under the key that the endpoint names."""
    page = document(path)
    texts = page.blocks("yaml") if path.endswith(".md") else [page.text]
    resources = [resource for text in texts for resource in yaml.safe_load_all(text) if "kind" in resource]
    config_maps = {item["metadata"]["name"]: item["data"] for item in resources if item["kind"] == "ConfigMap"}
    references = [
        item["spec"]["auth"]["limitsConfigMapRef"]
        for item in resources
        if "limitsConfigMapRef" in item.get("spec", {}).get("auth", {})
    ]
    assert len(references) == num_files
    for reference in references:
        policy = parse_limits(config_maps[reference["name"]][reference.get("key", "limits.yaml")].encode())
        assert policy.default != Limits()
        assert policy.by_client


def test_the_operator_parses_it(example):
    assert parse_endpoint(read_example(example)).key.name


def test_endpoints_do_not_meet():
    endpoints = [parse_endpoint(read_example(path)) for path in EXAMPLES]
    assert len({endpoint.key for endpoint in endpoints}) == len(EXAMPLES)
    assert len({endpoint.spec.dedicate for endpoint in endpoints}) == len(EXAMPLES)


def test_the_schema_refuses_an_unknown_field(closed_schema):
    resource = read_example(EXAMPLES[0])
    resource["spec"]["gpus"] = 1
    with pytest.raises(jsonschema.ValidationError, match="gpus"):
        jsonschema.Draft7Validator(closed_schema).validate(resource)


@pytest.mark.parametrize(
    "path", ["README.md", "docs/user-guide.md", "docs/custom-resource.md", "docs/runbook.md", "docs/scaling.md"]
)
def test_endpoints_in_documents_meet_the_schema_too(path, document, closed_schema):
    for block in document(path).blocks("yaml"):
        if "kind: DedicatedEndpoint" in block:
            validate(block, closed_schema)
