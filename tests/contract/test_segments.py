"""The CRD, the operator and the runtime agree on what may stand in the URL."""

import re

import pytest

from dedicate_operator import parsing as operator
from dedicate_operator.errors import SpecError
from dedicate_runtime import settings as runtime
from dedicate_runtime.errors import StartError

GOOD = ["a", "0", "chat", "llama-3-1-8b", "a" * 40, "1-2"]
BAD = ["", "-a", "a-", "A", "a.b", "a_b", "a/b", "é", "a" * 41, "a b", "a\n"]


@pytest.fixture(scope="module")
def crd_accepts(crd_schema):
    """The CRD's length and CEL rule; RE2 and Python read this pattern alike."""
    field = crd_schema["properties"]["spec"]["properties"]["dedicate"]
    (rule,) = field["x-kubernetes-validations"]
    pattern = re.fullmatch(r"self\.matches\('(.*)'\)", rule["rule"])[1]
    assert pattern.startswith("^")
    assert pattern.endswith("$")
    body = pattern[1:-1]

    def accepts(segment):
        return field["minLength"] <= len(segment) <= field["maxLength"] and bool(re.fullmatch(body, segment))

    return accepts


def operator_accepts(segment, make_resource):
    try:
        parsed = operator.parse_endpoint(make_resource({"dedicate": segment, "model": {"uri": "hf://a/b"}}))
    except SpecError:
        return False
    return parsed.spec.dedicate == segment


def runtime_accepts(segment):
    try:
        runtime.parse_settings(["--model", "hf://a/b", "--auth", "none", "--dedicate", segment], {})
    except StartError:
        return False
    return True


@pytest.mark.parametrize("segment", [*GOOD, *BAD])
def test_all_three_agree(segment, crd_accepts, make_resource):
    expected = segment in GOOD
    assert crd_accepts(segment) is expected
    assert operator_accepts(segment, make_resource) is expected
    assert runtime_accepts(segment) is expected


def test_reserved_names(crd_schema, make_resource):
    reserved = {"v1", "docs", "healthz", "readyz", "metrics"}
    assert operator.RESERVED_SEGMENTS == reserved == runtime._RESERVED_SEGMENTS
    rules = " ".join(rule["rule"] for rule in crd_schema["x-kubernetes-validations"])
    assert set(re.findall(r"'([a-z0-9]+)'", rules.split(" in [", 1)[1].split("]")[0])) == reserved
    for segment in reserved:
        assert not operator_accepts(segment, make_resource)
        assert not runtime_accepts(segment)


def test_choices_of_the_crd_are_the_runtimes(crd_schema):
    model = crd_schema["properties"]["spec"]["properties"]["model"]["properties"]
    assert {choice.lower() for choice in model["dtype"]["enum"]} == {choice.value for choice in runtime.DtypeChoice}
    given = {choice.lower() for choice in model["samplingDefaults"]["enum"]}
    assert given == {choice.value for choice in runtime.SamplingSource}
