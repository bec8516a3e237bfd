"""The OpenAPI document says what the API does: hundreds of requests are made from it, and their answers held to it."""

from __future__ import annotations

import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

KEY = {"Authorization": "Bearer sk-unit-test"}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
OPERATIONS = {
    "POST /unit/v1/chat/completions": 40,
    "POST /unit/v1/completions": 40,
    "POST /unit/tokenize": 20,
    "POST /unit/detokenize": 20,
    "GET /unit/v1/models/{model_id}": 10,
    "GET /unit/v1/models": 2,
    "GET /unit/v1/usage": 2,
    "GET /unit/tokenizer_info": 2,
    "GET /unit/health": 1,
    "GET /unit/version": 1,
}
"""Requests to make of each kind, within a minute for all together."""
WITH_INPUT = [label for label, times in OPERATIONS.items() if times > 2]
SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def schema(api):
    return schemathesis.openapi.from_asgi("/unit/openapi.json", api.app)


def operation_of(schema, label):
    (found,) = [result.ok() for result in schema.get_all_operations() if result.ok().label == label]
    return found


def name_the_model(case):
    if isinstance(case.body, dict):
        case.body["model"] = "unit/test"
    if case.path_parameters and "model_id" in case.path_parameters:
        case.path_parameters["model_id"] = "alias"


def agree(body):
    """Take back what is allowed field by field, and contradicts itself."""
    for name in ("random_sed", "random_seed", "stream_options", "max_completion_tokens", "top_logprobs", "best_of"):
        body.pop(name, None)
    for name in ("min_tokens", "max_tokens", "end_id", "stop_token_ids", "logit_bias", "continue_final_message"):
        body.pop(name, None)


@pytest.mark.parametrize("label", OPERATIONS)
def test_allowed_requests_are_answered_as_documented(schema, label):
    statuses = set()

    @settings(SETTINGS, max_examples=OPERATIONS[label])
    @given(case=operation_of(schema, label).as_strategy(), is_named=st.booleans(), agrees=st.booleans())
    def ask(case, is_named, agrees):
        if is_named:
            name_the_model(case)
        if agrees and isinstance(case.body, dict):
            agree(case.body)
        statuses.add(case.call_and_validate(headers=KEY, checks=CHECKS).status_code)

    ask()
    assert 200 in statuses


@pytest.mark.parametrize("label", WITH_INPUT)
def test_other_requests_are_refused_as_documented(schema, label):
    statuses = set()

    @settings(SETTINGS, max_examples=OPERATIONS[label])
    @given(case=operation_of(schema, label).as_strategy(GenerationMode.NEGATIVE), is_named=st.booleans())
    def ask(case, is_named):
        if is_named:
            name_the_model(case)
        statuses.add(case.call_and_validate(headers=KEY, checks=CHECKS).status_code)

    ask()
    assert statuses - {200}


async def test_keys_are_asked_for_where_documented(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answer = await api.client.request(method, path, headers={"Authorization": ""})
            assert (answer.status_code == 401) is ("security" in operation) is ("401" in operation["responses"])


def test_operations_are_all_tried(schema):
    assert {result.ok().label for result in schema.get_all_operations()} == set(OPERATIONS)


def test_document_is_valid(schema):
    schema.validate()


async def test_schemas_in_the_document_are_valid(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    schemas = list(schemas_in(document))
    assert len(schemas) > 50
    for found in schemas:
        jsonschema.Draft202012Validator.check_schema(found)


def schemas_in(node):
    """Yield whatever stands under a key that announces a schema."""
    if isinstance(node, list):
        for item in node:
            yield from schemas_in(item)
    if isinstance(node, dict):
        for name, value in node.items():
            if name == "schema":
                yield value
            elif name == "schemas":
                yield from value.values()
            else:
                yield from schemas_in(value)


async def test_examples_are_what_they_are_examples_of(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    bodies = [
        operation["requestBody"]["content"]["application/json"]
        for operations in document["paths"].values()
        for operation in operations.values()
        if "requestBody" in operation
    ]
    assert len(bodies) == 4
    for body in bodies:
        assert body["examples"]
        for example in body["examples"].values():
            jsonschema.validate(example["value"], body["schema"])


async def test_every_status_has_a_sentence_and_the_envelope(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    for operations in document["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert {"200", "400", "500", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
            for status, answer in operation["responses"].items():
                assert answer["description"]
                assert answer["headers"]["x-request-id"]
                if status != "200":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/ErrorEnvelope"}


async def test_document_without_keys_asks_for_none(make_api):
    document = (await make_api("--auth", "none").client.get("/unit/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    for operations in document["paths"].values():
        for operation in operations.values():
            assert "security" not in operation
            assert "401" not in operation["responses"]
