"""The specification's parameters, and the rows on ranges, seeds, nulls, defaults and limits."""

from __future__ import annotations

import json

import pytest

CONTEXT = 128


def assert_refused(response, status, *, param=None, code=None):
    """The envelope has all four keys and names the parameter."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["param"], error["code"]) == (param, code)


async def both(api, **fields):
    """Send the same fields to both endpoints."""
    return [await api.chat(**fields), await api.complete(**fields)]


@pytest.mark.parametrize(
    ("name", "default"),
    [("temperature", 0.7), ("repetition_penalty", 1.0), ("top_p", 0.7), ("top_k", 40), ("seed", 2)],
)
async def test_specification_defaults_hold_on_both_endpoints(api, name, default):
    for response in await both(api):
        assert response.status_code == 200
    assert [getattr(request.sampling, name) for request in api.engine.requests] == [default, default]


async def test_specification_default_of_max_tokens_is_1024(make_api):
    api = make_api(context=2048)
    for response in await both(api):
        assert response.status_code == 200
    assert [request.sampling.max_tokens for request in api.engine.requests] == [1024, 1024]


@pytest.mark.parametrize(
    ("sent", "attribute", "expected"),
    [
        ({"max_tokens": 7}, "max_tokens", 7),
        ({"max_tokens": 7, "max_completion_tokens": 5}, "max_tokens", 5),
        ({"temperature": 1.5}, "temperature", 1.5),
        ({"temperature": 2}, "temperature", 2.0),
        ({"temperature": 9e-6}, "temperature", 0.0),
        ({"temperature": 0}, "temperature", 0.0),
        ({"top_p": 0}, "temperature", 0.0),
        ({"top_p": 1}, "top_p", 1.0),
        ({"top_k": 0}, "top_k", 0),
        ({"top_k": -1}, "top_k", 0),
        ({"top_k": 5.0}, "top_k", 5),
        ({"repetition_penalty": 1.3}, "repetition_penalty", 1.3),
        ({"presence_penalty": -2}, "presence_penalty", -2.0),
        ({"frequency_penalty": 1}, "frequency_penalty", 1.0),
        ({"min_p": 0.05}, "min_p", 0.05),
        ({"min_tokens": 3}, "min_tokens", 3),
        ({"logit_bias": {"65": 5, "66": -100}}, "logit_bias", {65: 5.0, 66: -100.0}),
        ({"random_sed": 11}, "seed", 11),
        ({"random_seed": 11}, "seed", 11),
        ({"seed": 11}, "seed", 11),
        ({"seed": 11, "random_sed": 11, "random_seed": None}, "seed", 11),
        ({"random_sed": None}, "seed", 2),
        ({"temperature": None, "max_tokens": 9, "stop": None, "end_id": None, "n": None}, "temperature", 0.7),
    ],
    ids=str,
)
async def test_parameter_means_what_it_says(api, sent, attribute, expected):
    for response in await both(api, **sent):
        assert response.status_code == 200, response.text
    assert [getattr(request.sampling, attribute) for request in api.engine.requests] == [expected, expected]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", -0.1),
        ("top_p", 1.1),
        ("top_k", -2),
        ("top_k", 1.5),
        ("top_k", "40"),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("min_p", 2),
        ("max_tokens", -1),
        ("max_tokens", 10**30),
        ("max_completion_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 1000),
        ("n", 0),
        ("n", 129),
        ("stream", "yes"),
        ("model", None),
        ("model", 5),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 5),
        ("stop", [5]),
        ("end_id", -1),
        ("end_id", 100_000),
        ("end_id", "x"),
        ("stop_token_ids", [100_000]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"100000": 1}),
        ("seed", "x"),
        ("seed", 2**80),
        ("stream_options", {"include_usage": True}),
    ],
)
async def test_ranges_out_of_range_is_400_that_names_the_parameter(api, name, value):
    for response in await both(api, **{name: value}):
        assert response.status_code == 400, response.text
        assert response.json()["error"]["param"] == name
    assert not api.engine.requests


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_ranges_only_finite_numbers(api, literal):
    body = f'{{"model": "unit/test", "prompt": "x", "temperature": {literal}}}'
    assert_refused(await api.client.post("/unit/v1/completions", content=body), 400)


async def test_logit_bias_beyond_100_is_refused(api):
    response = await api.complete(logit_bias={"65": 101})
    assert_refused(response, 400, param="logit_bias.65")


async def test_seed_conflicting_spellings_are_refused(api):
    assert_refused(await api.chat(random_sed=1, seed=2), 400, param="seed")


async def test_seed_minus_one_is_random(api):
    for _ in range(2):
        await api.complete(seed=-1)
    first, second = (request.sampling.seed for request in api.engine.requests)
    assert first != second
    assert first >= 0


async def test_determinism_choice_i_has_seed_plus_i_for_every_prompt(api):
    await api.complete(["a", "b"], n=3, seed=10)
    assert [request.sampling.seed for request in api.engine.requests] == [10, 11, 12, 10, 11, 12]


async def test_sampling_defaults_of_the_model_on_request(make_api, model_folder):
    (model_folder / "generation_config.json").write_text(json.dumps({"temperature": 0.2, "top_k": 7}))
    api = make_api("--sampling-defaults", "model")
    await api.complete(top_k=9)
    assert (api.sampling.temperature, api.sampling.top_k, api.sampling.top_p) == (0.2, 9, 0.7)


async def test_sampling_defaults_of_a_model_that_does_not_sample_are_greedy(make_api, model_folder):
    (model_folder / "generation_config.json").write_text(json.dumps({"do_sample": False}))
    api = make_api("--sampling-defaults", "model")
    await api.complete()
    assert api.sampling.temperature == 0.0


async def test_model_mismatch_is_404(api):
    for response in await both(api, model="other/model"):
        assert_refused(response, 404, param="model", code="model_not_found")


@pytest.mark.parametrize("name", ["unit/test", "alias"])
async def test_model_served_names_are_accepted(api, name):
    for response in await both(api, model=name):
        assert response.status_code == 200
        assert response.json()["model"] == "unit/test"


async def test_max_tokens_default_is_clamped_to_the_context(api):
    await api.complete("x" * 100)
    assert api.sampling.max_tokens == CONTEXT - 101


async def test_max_tokens_explicit_over_the_context_is_refused(api):
    for name in ("max_tokens", "max_completion_tokens"):
        response = await api.complete("x" * 100, **{name: 50})
        assert_refused(response, 400, param=name, code="context_length_exceeded")
        assert "This model's maximum context length is 128 tokens" in response.json()["error"]["message"]


async def test_max_tokens_explicit_over_the_context_is_clamped_on_request(make_api):
    api = make_api("--clamp-max-tokens")
    assert (await api.complete("x" * 100, max_tokens=4096)).status_code == 200
    assert api.sampling.max_tokens == CONTEXT - 101


@pytest.mark.parametrize("length", [127, 500, 5_000_000])
async def test_max_tokens_prompt_at_or_over_the_context_is_refused(make_api, length):
    for options in ((), ("--clamp-max-tokens",)):
        response = await make_api(*options).complete("x" * length)
        assert_refused(response, 400, param="prompt", code="context_length_exceeded")
        assert "This model's maximum context length is 128 tokens" in response.json()["error"]["message"]


async def test_max_tokens_zero_only_with_echo(api):
    assert_refused(await api.complete(max_tokens=0), 400, param="max_tokens")
    assert_refused(await api.chat(max_tokens=0), 400, param="max_tokens")
    response = await api.complete("Hi", max_tokens=0, echo=True)
    assert response.json()["choices"][0] == {"index": 0, "text": "Hi", "logprobs": None, "finish_reason": "length"}
    assert response.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", [[256, 39, 72]]),
        (["H", "i"], [[256, 39], [256, 72]]),
        ([39, 72], [[39, 72]]),
        ([[39], [72, 39]], [[39], [72, 39]]),
    ],
    ids=str,
)
async def test_prompt_forms(api, prompt, expected):
    response = await api.complete(prompt)
    assert response.status_code == 200, response.text
    assert [list(request.prompt_token_ids) for request in api.engine.requests] == expected
    assert [choice["index"] for choice in response.json()["choices"]] == list(range(len(expected)))


@pytest.mark.parametrize("prompt", [[], [[]], [-1], [100_000], [1, "a"], ["a", [1]], {"a": 1}, 5, [True], None])
async def test_prompt_malformed_is_refused(api, prompt):
    assert_refused(await api.complete(prompt), 400, param="prompt")


async def test_prompt_lists_are_bounded(api):
    assert_refused(await api.complete(["x"] * 600, n=2), 400, param="prompt")


async def test_prompt_choice_index_is_j_times_n_plus_i(api):
    response = await api.complete(["a", "b"], n=2)
    prompts = [request.prompt_token_ids[-1] for request in api.engine.requests]
    assert prompts == [64, 64, 65, 65]
    assert [choice["index"] for choice in response.json()["choices"]] == [0, 1, 2, 3]
    assert response.json()["usage"]["prompt_tokens"] == 4


async def test_best_of_must_equal_n(api):
    assert (await api.complete(n=2, best_of=2)).status_code == 200
    assert_refused(await api.complete(n=1, best_of=2), 400, param="best_of")


@pytest.mark.parametrize(
    ("name", "meaningful", "neutral"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}], []),
        ("tool_choice", "required", "none"),
        ("functions", [{"name": "f"}], []),
        ("response_format", {"type": "json_object"}, {"type": "text"}),
        ("audio", {"voice": "alloy"}, None),
        ("modalities", ["text", "audio"], ["text"]),
        ("guided_json", {"type": "object"}, None),
        ("prediction", {"type": "content", "content": "x"}, None),
        ("suffix", "tail", ""),
        ("store", True, False),
        ("use_beam_search", True, False),
    ],
)
async def test_unsupported_but_meaningful_is_refused_and_neutral_values_pass(api, name, meaningful, neutral):
    for response in await both(api, **{name: meaningful}):
        assert_refused(response, 400, param=name)
    for response in await both(api, **{name: neutral}):
        assert response.status_code == 200, response.text


async def test_unknown_fields_are_ignored(api):
    for response in await both(api, typical_p=0.5, metadata={"a": "b"}, user="u", parallel_tool_calls=True):
        assert response.status_code == 200
