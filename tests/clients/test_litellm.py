"""LiteLLM, and so aider and whatever else stands on it."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def seen(probe):
    return probe("litellm_probe.py")


def test_chat_whole_and_streamed(seen):
    assert "Tokyo" in seen["chat"]
    assert seen["finish"] == "stop"
    assert seen["stream"] == seen["astream"] == seen["chat"]


def test_usage_is_the_same_in_a_stream(seen):
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    (streamed,) = seen["stream_usage"]
    assert [streamed[name] for name in counts] == [seen["usage"][name] for name in counts]
    assert seen["usage"]["prompt_tokens"] > 0


def test_parameters_pass(seen):
    assert len(seen["cut"]) == 2
    assert not any("Tokyo" in text for text in seen["cut"])


def test_completions_of_several_prompts(seen):
    assert len(seen["texts"]) == 2
    assert "Tokyo" in seen["texts"][0]
    assert seen["text_stream"] == seen["texts"][0]


def test_errors_are_its_own(seen):
    """It tells a context error by the sentence "This model's maximum context length is N tokens"; aider acts on it."""
    assert seen["refusals"] == {
        "context": "ContextWindowExceededError",
        "max_tokens": "ContextWindowExceededError",
        "key": "AuthenticationError",
        "model": "NotFoundError",
    }


def test_model_listing_drops_the_path(seen):
    """It asks `GET {host}/v1/models`, where no dedicate is: docs/clients.md says to name the model instead."""
    assert "Not Found: GET /v1/models" in seen["listed"]
