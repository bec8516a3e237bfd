"""The rows of the specification: each parameter, its default, and the endpoints that take it."""

from __future__ import annotations

import json

import pytest

PATHS = {"chat": "/unit/v1/chat/completions", "completions": "/unit/v1/completions"}
BOTH = ("chat", "completions")
LONG_CONTEXT = 2048


async def ask(api, endpoint, **fields):
    text = {"messages": [{"role": "user", "content": "Hi"}]} if endpoint == "chat" else {"prompt": "Hi"}
    body = {"model": "unit/test", **text, **fields}
    return await api.client.post(PATHS[endpoint], json={name: body[name] for name in body if body[name] is not ...})


def text_of(response):
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.row("specification: messages")
async def test_specification_messages(api):
    turns = [{"role": role, "content": f"{role} says"} for role in ("system", "user", "assistant", "user")]
    assert (await ask(api, "chat", messages=turns)).status_code == 200
    prompt = api.engine.tokenizer.decode(list(api.engine.requests[-1].prompt_token_ids), skip_special_tokens=False)
    assert prompt == "".join(f"[{turn['role']}]{turn['content']}<|end|>" for turn in turns) + "[assistant]"
    missing = await ask(api, "chat", messages=...)
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "messages")


@pytest.mark.row("specification: prompt")
async def test_specification_prompt_is_raw_text(api):
    assert (await ask(api, "completions", prompt="def f(")).status_code == 200
    prompt = api.engine.tokenizer.decode(list(api.engine.requests[-1].prompt_token_ids), skip_special_tokens=True)
    assert prompt == "def f("
    missing = await ask(api, "completions", prompt=...)
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "prompt")


@pytest.mark.row("specification: model")
@pytest.mark.parametrize("endpoint", BOTH)
@pytest.mark.parametrize(
    ("model", "status"), [("unit/test", 200), ("alias", 200), (..., 400), (None, 400), (5, 400), ("", 404)], ids=repr
)
async def test_specification_model_is_required(api, endpoint, model, status):
    response = await ask(api, endpoint, model=model)
    assert response.status_code == status
    if status != 200:
        assert response.json()["error"]["param"] == "model"


@pytest.mark.row("specification: stream")
@pytest.mark.parametrize("endpoint", BOTH)
@pytest.mark.parametrize(
    ("stream", "kind"), [(..., "application/json"), (False, "application/json"), (True, "text/event-stream")], ids=repr
)
async def test_specification_stream_defaults_to_false(api, endpoint, stream, kind):
    assert (await ask(api, endpoint, stream=stream)).headers["content-type"] == kind


@pytest.mark.parametrize("endpoint", BOTH)
@pytest.mark.parametrize(
    ("name", "default", "other"),
    [
        pytest.param("max_tokens", 1024, 5, marks=pytest.mark.row("specification: max_tokens")),
        pytest.param("temperature", 0.7, 1.5, marks=pytest.mark.row("specification: temperature")),
        pytest.param("repetition_penalty", 1.0, 1.3, marks=pytest.mark.row("specification: repetition_penalty")),
        pytest.param("top_p", 0.7, 0.9, marks=pytest.mark.row("specification: top_p")),
        pytest.param("top_k", 40, 5, marks=pytest.mark.row("specification: top_k")),
        pytest.param("random_sed", 2, 11, marks=pytest.mark.row("specification: random_sed")),
    ],
)
async def test_specification_of(make_api, endpoint, name, default, other):
    api = make_api(context=LONG_CONTEXT)
    for sent, expected in ((..., default), (None, default), (default, default), (other, other)):
        assert (await ask(api, endpoint, **{name: sent})).status_code == 200
        assert getattr(api.sampling, "seed" if name == "random_sed" else name) == expected


@pytest.mark.row("specification: end_id")
@pytest.mark.parametrize("endpoint", BOTH)
@pytest.mark.parametrize(
    ("sent", "expected"), [(..., {7, 258}), (None, {7, 258}), (5, {5}), ([5, 6], {5, 6}), (5.0, {5})], ids=repr
)
async def test_specification_end_id_defaults_to_the_models(make_api, model_folder, endpoint, sent, expected):
    (model_folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    (model_folder / "generation_config.json").write_text("{}")
    api = make_api()
    response = await ask(api, endpoint, end_id=sent)
    assert response.status_code == 200, response.text
    assert api.sampling.end_ids == expected


@pytest.mark.row("specification: stop")
@pytest.mark.parametrize("endpoint", BOTH)
@pytest.mark.parametrize(
    ("sent", "expected"),
    [(..., "Hello, world."), ([], "Hello, world."), ([","], "Hello"), (["x", "wor"], "Hello, ")],
    ids=repr,
)
async def test_specification_stop_adds_to_the_models_end(api, endpoint, sent, expected):
    response = await ask(api, endpoint, stop=sent)
    assert text_of(response) == expected
    assert api.engine.end_id in api.sampling.end_ids
