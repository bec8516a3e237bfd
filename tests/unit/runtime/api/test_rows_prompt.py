"""Rows of docs/api.md on prompts and on how much may follow them."""

from __future__ import annotations

import pytest

from tests.unit.runtime.api.wire import assert_refused, both, ids_of, prompt_text

CONTEXT = 128


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
    assert [int(request.request_id.rpartition("-")[2]) for request in api.engine.requests] == list(range(len(expected)))


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


@pytest.mark.row("prompt")
@pytest.mark.parametrize(("num_prompts", "n"), [(600, 2), (1025, 1), (9, 128)])
async def test_prompt_lists_are_bounded(api, num_prompts, n):
    assert_refused(await api.complete(["x"] * num_prompts, n=n), param="prompt")


@pytest.mark.row("special tokens")
@pytest.mark.parametrize(
    ("prompt", "fields", "expected"),
    [
        ("Hi", {}, "<s>Hi"),
        ("Hi", {"add_special_tokens": True}, "<s>Hi"),
        ("Hi", {"add_special_tokens": False}, "Hi"),
        ("<s>Hi", {}, "<s>Hi"),
        ("<s>Hi", {"add_special_tokens": False}, "<s>Hi"),
        (" <s>Hi", {}, "<s> <s>Hi"),
        (ids_of("Hi"), {}, "Hi"),
        (ids_of("Hi"), {"add_special_tokens": True}, "Hi"),
    ],
    ids=str,
)
async def test_special_tokens_of_prompts(api, prompt, fields, expected):
    assert (await api.complete(prompt, **fields)).status_code == 200
    assert prompt_text(api) == expected


@pytest.mark.row("special tokens")
@pytest.mark.parametrize("template", ["{{ messages[0].content }}", "<s>{{ messages[0].content }}"])
@pytest.mark.parametrize(("add", "expected"), [(..., ""), (False, ""), (True, "<s>")], ids=repr)
async def test_special_tokens_of_conversations(make_api, model_folder, template, add, expected):
    (model_folder / "chat_template.jinja").write_text(template)
    api = make_api()
    await api.chat("Hi", **({} if add is ... else {"add_special_tokens": add}))
    assert prompt_text(api) == ("<s>Hi" if template.startswith("<s>") else f"{expected}Hi")
