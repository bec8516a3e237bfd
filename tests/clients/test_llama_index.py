"""LlamaIndex's `OpenAILike`, as a chat model and as what it is by default: a completion model."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def seen(probe):
    return probe("llama_index_probe.py")


def test_chat_whole_and_streamed(seen):
    assert "Tokyo" in seen["chat"]
    assert seen["chat_stream"] == seen["achat"] == seen["astream_chat"] == seen["chat"]
    assert "Tokyo" in seen["complete_as_chat"]


def test_completions_whole_and_streamed(seen):
    assert "Tokyo" in seen["complete"]
    assert len(seen["complete_stream"]) > 1
    assert "".join(seen["complete_stream"]) == seen["acomplete"] == seen["complete"]
    assert seen["logprobs"] == 8


def test_chats_as_text_by_default(seen):
    """Without `is_chat_model` a conversation goes to /completions as one text."""
    assert "Tokyo" in seen["chat_as_text"]
    assert seen["chat_as_text_stream"] == seen["chat_as_text"]
