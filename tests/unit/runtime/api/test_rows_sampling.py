"""Rows of docs/api.md on sampling: seeds, defaults, ranges, and what else is honoured."""

from __future__ import annotations

import json

import pytest

from tests.unit.runtime.api.wire import assert_refused, both


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
