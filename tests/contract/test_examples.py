"""Each example is what the CRD takes and what the operator can serve."""

import jsonschema
import pytest
import yaml

from dedicate_operator.spec import parse_endpoint
from dev.paths import REPOSITORY

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.yaml"))


def validate(text, schema):
    validator = jsonschema.Draft7Validator(schema)
    for resource in yaml.safe_load_all(text):
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
    }


def test_it_meets_the_schema(example, closed_schema):
    validate(example.read_text(), closed_schema)


def test_it_is_one_commented_resource_without_a_namespace(example):
    text = example.read_text()
    (resource,) = yaml.safe_load_all(text)
    assert (resource["apiVersion"], resource["kind"]) == ("dedicate.dev/v1alpha1", "DedicatedEndpoint")
    assert "namespace" not in resource["metadata"]
    assert text.startswith("# ")


def test_the_operator_parses_it(example, load_example):
    assert parse_endpoint(load_example(example)).key.name


def test_endpoints_do_not_meet(load_example):
    endpoints = [parse_endpoint(load_example(path)) for path in EXAMPLES]
    assert len({endpoint.key for endpoint in endpoints}) == len(EXAMPLES)
    assert len({endpoint.spec.dedicate for endpoint in endpoints}) == len(EXAMPLES)


def test_the_schema_refuses_an_unknown_field(closed_schema, load_example):
    resource = load_example(EXAMPLES[0])
    resource["spec"]["gpus"] = 1
    with pytest.raises(jsonschema.ValidationError, match="gpus"):
        jsonschema.Draft7Validator(closed_schema).validate(resource)


@pytest.mark.parametrize("path", ["README.md", "docs/user-guide.md", "docs/custom-resource.md", "docs/runbook.md"])
def test_endpoints_in_documents_meet_the_schema_too(path, document, closed_schema):
    for block in document(path).blocks("yaml"):
        if "kind: DedicatedEndpoint" in block:
            validate(block, closed_schema)
