"""The official client for Node."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def seen(node_probe):
    return node_probe("openai_probe.mjs")


def test_chat_whole_and_streamed(seen):
    text = seen["whole"]["message"]["content"]
    assert "Tokyo" in text
    assert seen["streamed"] == text
    assert seen["streamUsage"] == seen["usage"]
    assert seen["finishReasons"][-1] == "stop"
    assert set(seen["finishReasons"][:-1]) == {None}


def test_explicit_nulls_mean_the_defaults(seen):
    assert seen["withNulls"] == seen["whole"]


def test_request_id(seen):
    assert seen["requestId"]
    assert seen["echoedId"] == ["from-the-client"] * 2


def test_stream_helper_accumulates_several_choices(seen):
    assert len(seen["helper"]) == 2
    assert all(seen["helper"])


def test_completions_of_several_prompts(seen):
    assert "Tokyo" in seen["texts"][0]
    assert len(seen["texts"]) == 2
    assert seen["logprobs"] == 4


def test_models(seen, runtime):
    assert seen["models"] == [runtime.model]
    assert seen["retrieved"] > 0


def test_abort_ends_a_stream_and_frees_it(seen, runtime):
    assert 2 <= seen["chunksBeforeAbort"] < 4000

    def cut_short():
        return [
            record
            for record in runtime.logged("request")
            if record["client_left"] and record["path"].endswith("/v1/completions")
        ]

    record = runtime.wait_until(cut_short, deadline_s=30, what="noticing")[-1]
    assert 0 < record["completion_tokens"] < 4000


def test_errors_are_the_clients_own_types(seen):
    assert seen["errors"] == [
        ["NotFoundError", 404, "model_not_found", "model", True],
        ["BadRequestError", 400, None, "temperature", True],
        ["AuthenticationError", 401, "invalid_api_key", None, True],
    ]
