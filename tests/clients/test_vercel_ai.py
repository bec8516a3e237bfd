"""The Vercel AI SDK with its provider for compatible servers: chats, and completions with `stop: ["\\nuser:"]`."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def seen(node_probe):
    return node_probe("vercel_ai_probe.mjs")


def test_chat_whole_and_streamed(seen, runtime):
    assert "Tokyo" in seen["whole"]
    assert "".join(seen["deltas"]) == seen["whole"]
    assert seen["finishReason"] == seen["streamFinishReason"] == "stop"
    assert seen["modelId"] == runtime.model
    assert seen["requestId"]


def test_usage_is_the_same_in_a_stream(seen):
    counts = ("inputTokens", "outputTokens", "totalTokens")
    assert [seen["streamUsage"][name] for name in counts] == [seen["usage"][name] for name in counts]
    assert seen["usage"]["outputTokens"] > 1


def test_completions_stop_before_the_users_next_turn(seen):
    path, body = seen["completionBody"]
    assert path.endswith("/v1/completions")
    assert body["stop"] == ["\nuser:"]
    assert body["stream_options"] == {"include_usage": True}
    assert "Tokyo" in seen["completion"]
    assert "\nuser:" not in seen["completion"]
    assert "".join(seen["completionDeltas"]) == seen["completion"]
    assert seen["completionUsage"]["outputTokens"] > 1


def test_abort_ends_a_stream(seen):
    assert 2 <= seen["parts"] < 4000
    assert seen["lastPart"] == "abort"


def test_provider_options_are_sent(seen):
    assert seen["ignoreEos"] is True


def test_errors_tell_status_and_sentence(seen):
    assert seen["model"][:2] == [True, 404]
    assert "other" in seen["model"][2]
    assert seen["range"][:2] == [True, 400]
    assert "temperature" in seen["range"][2]
