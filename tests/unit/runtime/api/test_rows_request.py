"""Rows of docs/api.md on who asks for what: keys, the model, fields that cannot be honoured, nulls."""

from __future__ import annotations

import httpx
import pytest

from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest
from dedicate_runtime.api.unsupported import IGNORED_FIELDS, UNSUPPORTED_FIELDS
from tests.unit.runtime.api.wire import assert_refused, both

KEY = "sk-unit-test"
OPTIONAL = sorted(
    {
        name
        for wire in (ChatCompletionRequest, CompletionRequest)
        for name, field in wire.model_fields.items()
        if not field.is_required()
    }
)


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
