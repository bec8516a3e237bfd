"""Rows of docs/api.md on what a request may hold: keys, model, seeds, ranges, nulls, limits, refusals."""

from __future__ import annotations

import json

import httpx
import pytest

from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest
from dedicate_runtime.api.unsupported import IGNORED_FIELDS, UNSUPPORTED_FIELDS

KEY = "sk-unit-test"
CONTEXT = 128
OPTIONAL = sorted(
    {
        name
        for wire in (ChatCompletionRequest, CompletionRequest)
        for name, field in wire.model_fields.items()
        if not field.is_required()
    }
)


async def both(api, **fields):
    """Send the same fields to both endpoints."""
    return [await api.chat(**fields), await api.complete(**fields)]


def assert_refused(response, *, param, status=400, code=None):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["param"], error["code"]) == (param, code)


@pytest.mark.row("header")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("Authorization", f"Bearer {KEY}")], 200),
        ([("Autherization", f"Bearer {KEY}")], 200),
        ([("autherization", f"bearer {KEY}")], 200),
        ([("Authorization", f"Bearer {KEY}"), ("Autherization", f"Bearer {KEY}")], 200),
        ([("Authorization", f"Bearer {KEY}"), ("Autherization", f"bearer  {KEY} ")], 200),
        ([("Authorization", f"Bearer {KEY}"), ("Autherization", "Bearer other")], 401),
        ([("Authorization", "Bearer other"), ("Autherization", f"Bearer {KEY}")], 401),
        ([("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")], 401),
        ([("Authorization", f"Bearer {KEY}"), ("Autherization", "")], 401),
        ([("Authorization", f"Bearer {KEY}x")], 401),
        ([("Authorization", f"Bearer {KEY[:-1]}")], 401),
        ([("Authorization", f"Basic {KEY}")], 401),
        ([("Authorization", KEY)], 401),
        ([("Authorization", "Bearer ")], 401),
        ([("Authorization", "Bearer k\u00e9y".encode("latin-1"))], 401),
        ([("X-Api-Key", KEY)], 401),
        ([], 401),
    ],
    ids=str,
)
async def test_header(api, headers, status):
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test") as client:
        response = await client.get("/unit/v1/models", headers=headers)
    assert response.status_code == status
    if status == 401:
        assert_refused(response, param=None, status=401, code="invalid_api_key")
        assert KEY not in response.text


@pytest.mark.row("model mismatch")
@pytest.mark.parametrize("name", ["other/model", "unit", "UNIT/TEST", "unit/test ", "", "model"])
async def test_model_mismatch(api, name):
    for response in await both(api, model=name):
        assert_refused(response, param="model", status=404, code="model_not_found")
    response = await api.client.post("/unit/tokenize", json={"model": name, "prompt": "x"})
    assert_refused(response, param="model", status=404, code="model_not_found")


@pytest.mark.row("model mismatch")
@pytest.mark.parametrize("name", ["unit/test", "alias"])
async def test_model_mismatch_names_that_match(api, name):
    for response in await both(api, model=name):
        assert response.json()["model"] == "unit/test"


@pytest.mark.row("seed")
@pytest.mark.parametrize(
    ("fields", "seed"),
    [
        ({}, 2),
        ({"random_sed": None, "random_seed": None, "seed": None}, 2),
        ({"random_sed": 7}, 7),
        ({"random_seed": 7}, 7),
        ({"seed": 7}, 7),
        ({"seed": 0}, 0),
        ({"random_sed": 7, "random_seed": 7, "seed": 7.0}, 7),
        ({"random_sed": None, "seed": 7}, 7),
        ({"seed": 2**63}, 0),
        ({"seed": 2**64 - 1}, 2**63 - 1),
        ({"seed": -2}, 2**63 - 2),
    ],
    ids=str,
)
async def test_seed(api, fields, seed):
    for response in await both(api, **fields):
        assert response.status_code == 200, response.text
    assert [request.sampling.seed for request in api.engine.requests] == [seed, seed]


@pytest.mark.row("seed")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"random_sed": 1, "seed": 2}, "seed"),
        ({"random_sed": 1, "random_seed": 2}, "random_seed"),
        ({"random_sed": -1, "seed": 2}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "2"}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"random_sed": True}, "random_sed"),
    ],
    ids=str,
)
async def test_seed_refusals(api, fields, param):
    for response in await both(api, **fields):
        assert_refused(response, param=param)


@pytest.mark.row("seed")
async def test_seed_minus_one_is_random_for_each_request(api):
    for name in ("random_sed", "random_seed", "seed", "seed"):
        await api.complete(**{name: -1})
    seeds = [request.sampling.seed for request in api.engine.requests]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.row("determinism")
@pytest.mark.parametrize(
    ("prompt", "n", "seed", "seeds"),
    [
        ("a", 1, 10, [10]),
        ("a", 3, 10, [10, 11, 12]),
        (["a", "b"], 2, 10, [10, 11, 10, 11]),
        ([[1], [2], [3]], 1, 10, [10, 10, 10]),
        ("a", 2, 2**63 - 1, [2**63 - 1, 0]),
    ],
    ids=str,
)
async def test_determinism_choice_i_uses_seed_plus_i(api, prompt, n, seed, seeds):
    assert (await api.complete(prompt, n=n, seed=seed)).status_code == 200
    assert [request.sampling.seed for request in api.engine.requests] == seeds


@pytest.mark.row("sampling defaults")
@pytest.mark.parametrize(
    ("options", "generation", "fields", "expected"),
    [
        ((), {"temperature": 0.2, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1}, {}, (0.7, 0.7, 40, 1.0)),
        (
            ("--sampling-defaults", "model"),
            {"temperature": 0.2, "top_p": 0.9, "top_k": 7, "repetition_penalty": 1.1},
            {},
            (0.2, 0.9, 7, 1.1),
        ),
        (("--sampling-defaults", "model"), {"temperature": 0.2}, {"temperature": 1}, (1.0, 0.7, 40, 1.0)),
        (("--sampling-defaults", "model"), {"temperature": 0.2}, {"temperature": None}, (0.2, 0.7, 40, 1.0)),
        (("--sampling-defaults", "model"), {"top_k": None}, {}, (0.7, 0.7, 40, 1.0)),
        (("--sampling-defaults", "model"), {"do_sample": False, "temperature": 0.2}, {}, (0.0, 1.0, 40, 1.0)),
        (("--sampling-defaults", "model"), {}, {}, (0.7, 0.7, 40, 1.0)),
    ],
    ids=str,
)
async def test_sampling_defaults(make_api, model_folder, options, generation, fields, expected):
    (model_folder / "generation_config.json").write_text(json.dumps(generation))
    api = make_api(*options)
    for response in await both(api, **fields):
        assert response.status_code == 200
        sampling = api.sampling
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == expected


@pytest.mark.row("ranges")
@pytest.mark.parametrize(
    ("name", "value", "attribute", "expected"),
    [
        ("temperature", 0, "temperature", 0.0),
        ("temperature", 9.9e-6, "temperature", 0.0),
        ("temperature", 1e-5, "temperature", 1e-5),
        ("temperature", 2, "temperature", 2.0),
        ("temperature", -0.0, "temperature", 0.0),
        ("top_p", 0, "temperature", 0.0),
        ("top_p", 1e-9, "top_p", 1e-9),
        ("top_p", 1, "top_p", 1.0),
        ("top_k", -1, "top_k", 0),
        ("top_k", 0, "top_k", 0),
        ("top_k", 1, "top_k", 1),
        ("top_k", 2**31 - 1, "top_k", 2**31 - 1),
        ("repetition_penalty", 0.01, "repetition_penalty", 0.01),
    ],
)
async def test_ranges(api, name, value, attribute, expected):
    for response in await both(api, **{name: value}):
        assert response.status_code == 200, response.text
    assert [getattr(request.sampling, attribute) for request in api.engine.requests] == [expected, expected]


@pytest.mark.row("ranges")
@pytest.mark.parametrize(
    ("name", "literal"),
    [
        *[(name, value) for name in ("temperature", "top_p", "min_p") for value in ("-0.01", "2.01", '"0.5"', "true")],
        *[("top_k", value) for value in ("-2", "1.5", '"40"', "1e12", "[]")],
        *[("repetition_penalty", value) for value in ("0", "-1", "{}")],
        *[("presence_penalty", value) for value in ("-2.1", "2.1")],
        *[("frequency_penalty", value) for value in ("-2.1", "2.1")],
        *[
            (name, value)
            for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
            for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999")
        ],
        ("top_k", "1e999"),
        ("max_tokens", "Infinity"),
    ],
)
async def test_ranges_refusals_name_the_parameter(api, name, literal):
    texts = {"chat/completions": '"messages": [{"role": "user", "content": "x"}]', "completions": '"prompt": "x"'}
    for path, text in texts.items():
        body = f'{{"model": "unit/test", {text}, "{name}": {literal}, "n": 1}}'
        assert_refused(await api.client.post(f"/unit/v1/{path}", content=body), param=name)
    assert not api.engine.requests


@pytest.mark.row("ranges")
async def test_ranges_a_number_within_a_text_is_no_parameter(api):
    body = b'{"model": "unit/test", "prompt": "\\"temperature\\": NaN", "stop": }'
    assert_refused(await api.client.post("/unit/v1/completions", content=body), param=None)


@pytest.mark.row("also honoured")
@pytest.mark.parametrize(
    ("fields", "attribute", "expected"),
    [
        ({"max_completion_tokens": 5}, "max_tokens", 5),
        ({"max_completion_tokens": 5, "max_tokens": 9}, "max_tokens", 5),
        ({"logit_bias": {"65": 5, "66": -100}}, "logit_bias", {65: 5.0, 66: -100.0}),
        ({"logit_bias": []}, "logit_bias", {}),
        ({"presence_penalty": -2}, "presence_penalty", -2.0),
        ({"frequency_penalty": 2}, "frequency_penalty", 2.0),
        ({"min_p": 0.05}, "min_p", 0.05),
        ({"ignore_eos": True}, "end_ids", frozenset()),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"stop_token_ids": [5], "ignore_eos": True}, "end_ids", {5}),
        ({"user": "u"}, "seed", 2),
        ({"stream": True, "stream_options": {"include_usage": True, "include_obfuscation": False}}, "seed", 2),
    ],
    ids=str,
)
async def test_also_honoured(api, fields, attribute, expected):
    for response in await both(api, **fields):
        assert response.status_code == 200, response.text
    assert [getattr(request.sampling, attribute) for request in api.engine.requests] == [expected, expected]


@pytest.mark.row("also honoured")
@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"n": 3, "best_of": 3}, 200, None),
        ({"n": 3, "best_of": None}, 200, None),
        ({"best_of": 1}, 200, None),
        ({"best_of": 2}, 400, "best_of"),
        ({"n": 3, "best_of": 1}, 400, "best_of"),
        ({"n": 0}, 400, "n"),
        ({"n": 129}, 400, "n"),
        ({"logit_bias": {"260": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"65": 101}}, 400, "logit_bias.65"),
        ({"logit_bias": [65]}, 400, "logit_bias"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "min_tokens"),
        ({"stop_token_ids": [260]}, 400, "stop_token_ids"),
    ],
    ids=str,
)
async def test_also_honoured_within_bounds(api, fields, status, param):
    response = await api.complete(**fields)
    assert response.status_code == status, response.text
    if param:
        assert_refused(response, param=param)


MEANINGFUL = {
    "tool_choice": "required",
    "function_call": {"name": "f"},
    "response_format": {"type": "json_schema", "json_schema": {}},
    "modalities": ["text", "audio"],
    "typical_p": 0.5,
    "tfs": 0.5,
    "tfs_z": 0.5,
    "num_beams": 4,
    "best_of": 2,
    "echo": True,
    "suffix": "tail",
    "prompt_logprobs": 0,
    "thinking_token_budget": 100,
    "web_search_options": {},
}
"""Where `[1]`, which stands for anything in the other fields, would not do."""
NEUTRAL = {
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
    "typical_p": 1.0,
    "top_a": 0.0,
    "tfs": 1,
    "mirostat_mode": 0,
    "num_beams": 1,
    "use_beam_search": False,
    "prompt_logprobs": False,
    "thinking_token_budget": -1,
    "priority": 0,
    "bad_words": [],
    "suffix": "",
}


@pytest.mark.row("unsupported but meaningful")
@pytest.mark.parametrize("name", UNSUPPORTED_FIELDS)
async def test_unsupported_but_meaningful(api, name):
    assert_refused(await api.chat(**{name: MEANINGFUL.get(name, [1])}), param=name)
    if name not in CompletionRequest.model_fields:
        assert_refused(await api.complete(**{name: MEANINGFUL.get(name, [1])}), param=name)
    assert not api.engine.requests
    for response in await both(api, **{name: NEUTRAL.get(name)}):
        assert response.status_code == 200, response.text


@pytest.mark.row("unsupported but meaningful")
@pytest.mark.parametrize("name", [*IGNORED_FIELDS, "a_field_of_next_year"])
async def test_unsupported_but_meaningless_is_ignored(api, name):
    for value in (True, 1, "x", {"type": "content", "content": "x"}, [1]):
        for response in await both(api, **{name: value}):
            assert response.status_code == 200, response.text


@pytest.mark.row("null")
@pytest.mark.parametrize("name", [*OPTIONAL, *UNSUPPORTED_FIELDS, *IGNORED_FIELDS])
async def test_null(api, name):
    await both(api)
    for response in await both(api, **{name: None}):
        assert response.status_code == 200, response.text
    plain, null = api.engine.requests[:2], api.engine.requests[2:]
    assert [request.sampling for request in null] == [request.sampling for request in plain]
    assert [request.prompt_token_ids for request in null] == [request.prompt_token_ids for request in plain]


@pytest.mark.row("null")
async def test_null_everywhere_at_once(api):
    nulls = dict.fromkeys([*OPTIONAL, *UNSUPPORTED_FIELDS, *IGNORED_FIELDS])
    messages = [{"role": "user", "content": "Hi", "name": None, "tool_calls": None, "tool_call_id": None, "x": None}]
    for response in (await api.chat(**{**nulls, "messages": messages}), await api.complete(**nulls)):
        assert response.status_code == 200, response.text
    streamed = await api.chat(stream=True, stream_options={"include_usage": None, "continuous_usage_stats": None})
    assert streamed.status_code == 200


@pytest.mark.row("max_tokens")
@pytest.mark.parametrize("clamps", [False, True])
@pytest.mark.parametrize(
    ("length", "fields", "expected"),
    [
        (CONTEXT - 1, {}, 1),
        (CONTEXT - 1, {"max_tokens": 1}, 1),
        (100, {"max_tokens": None}, 28),
        (100, {"max_tokens": 28}, 28),
        (100, {"max_completion_tokens": 28}, 28),
        (CONTEXT, {}, "prompt"),
        (CONTEXT, {"max_tokens": 1}, "prompt"),
        (CONTEXT + 1, {"max_tokens": 1}, "prompt"),
        (5_000_000, {}, "prompt"),
        (CONTEXT, {"max_tokens": 0, "echo": True}, "prompt"),
        (CONTEXT - 1, {"max_tokens": 0, "echo": True}, 1),
        (100, {"max_completion_tokens": 0, "echo": True}, 1),
    ],
    ids=str,
)
async def test_max_tokens(make_api, clamps, length, fields, expected):
    api = make_api(*["--clamp-max-tokens"] * clamps)
    response = await api.complete("x" * length, add_special_tokens=False, **fields)
    if isinstance(expected, int):
        assert response.status_code == 200, response.text
        assert api.sampling.max_tokens == expected
    else:
        assert_refused(response, param=expected, code="context_length_exceeded")
        assert f"This model's maximum context length is {CONTEXT} tokens" in response.json()["error"]["message"]


@pytest.mark.row("max_tokens")
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [29, 4096, 10**30])
async def test_max_tokens_explicit_over_the_context(make_api, name, value):
    response = await make_api().complete("x" * 100, add_special_tokens=False, **{name: value})
    assert_refused(response, param=name, code="context_length_exceeded")
    assert f"This model's maximum context length is {CONTEXT} tokens" in response.json()["error"]["message"]
    api = make_api("--clamp-max-tokens")
    assert (await api.complete("x" * 100, add_special_tokens=False, **{name: value})).status_code == 200
    assert api.sampling.max_tokens == 28


@pytest.mark.row("max_tokens")
@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("value", [0, -1])
async def test_max_tokens_zero_only_with_echo(api, name, value):
    for response in await both(api, **{name: value}):
        assert_refused(response, param=name)


@pytest.mark.row("max_tokens")
async def test_max_tokens_zero_with_echo_brings_the_prompt_alone(api):
    response = await api.complete(["Hi", "Yo"], max_tokens=0, echo=True, logprobs=1)
    choices = response.json()["choices"]
    assert [choice["text"] for choice in choices] == ["Hi", "Yo"]
    assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [3, 3]
    assert response.json()["usage"] == {"prompt_tokens": 6, "completion_tokens": 0, "total_tokens": 6}


@pytest.mark.row("prompt")
@pytest.mark.parametrize(
    ("prompt", "n", "expected"),
    [
        ("Hi", 1, [[256, 39, 72]]),
        ("", 1, [[256]]),
        (["H", "i"], 1, [[256, 39], [256, 72]]),
        ([39, 72], 1, [[39, 72]]),
        ([0, 259], 1, [[0, 259]]),
        ([[39], [72, 39]], 1, [[39], [72, 39]]),
        (["H", "i"], 2, [[256, 39], [256, 39], [256, 72], [256, 72]]),
    ],
    ids=str,
)
async def test_prompt(api, prompt, n, expected):
    response = await api.complete(prompt, n=n)
    assert response.status_code == 200, response.text
    assert [list(request.prompt_token_ids) for request in api.engine.requests] == expected
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))


@pytest.mark.row("prompt")
@pytest.mark.parametrize(
    "prompt",
    [[], [[]], [[1], []], [-1], [[1], [-1]], [260], [[260]], [2**70], [1, "a"], ["a", [1]], [1.5], [True], 5, {}, None],
    ids=str,
)
async def test_prompt_refusals(api, prompt):
    assert_refused(await api.complete(prompt), param="prompt")
    assert not api.engine.requests


@pytest.mark.row("prompt")
@pytest.mark.parametrize("prompt", ["", ["a", ""]], ids=str)
async def test_prompt_of_no_tokens(api, prompt):
    assert_refused(await api.complete(prompt, add_special_tokens=False), param="prompt")
