"""LangChain's `ChatOpenAI` and `OpenAI`: 20 prompts at a time, one choice per prompt times n, in order."""

from __future__ import annotations

import json

import pytest

PROMPTS = [f"{number} plus one is" for number in range(45)]


@pytest.fixture(scope="module")
def seen(probe):
    return probe("langchain_probe.py", json.dumps(PROMPTS))


def test_conversation(seen, runtime):
    assert "Tokyo" in seen["chat"]
    usage, metadata = seen["chat_usage"], seen["chat_metadata"]
    assert usage["input_tokens"] + usage["output_tokens"] == usage["total_tokens"]
    assert metadata["model_name"] == runtime.model
    assert metadata["finish_reason"] == "stop"


def test_stream_equals_whole_and_tells_usage(seen):
    assert len([part for part in seen["stream"] if part]) > 1
    assert seen["stream_whole"] == seen["invoked"]
    assert seen["stream_finish"] == "stop"
    assert seen["stream_usage"]["output_tokens"] > 1


def test_batches_and_asynchronous_calls(seen):
    assert ["Tokyo" in seen["batch"][0], "Cairo" in seen["batch"][1]] == [True, True]
    assert seen["abatch"] == [seen["invoked"]] * 3
    assert seen["astream"] == seen["invoked"]


def test_several_choices(seen):
    assert len(set(seen["n"])) == 3


def test_logprobs(seen):
    assert len(seen["logprobs"]) == 4
    assert all(len(entry["top_logprobs"]) == 2 for entry in seen["logprobs"])
    assert len(seen["text_logprobs"]["tokens"]) == 3


def test_stop(seen):
    assert seen["stop"] == seen["invoked"].split("Tokyo")[0]


def test_extra_body_is_sent(seen):
    """What goes on past the end that the model would have made."""
    assert len(seen["extra"]) > len(seen["invoked"])


def test_list_prompts_keep_their_order(seen, runtime):
    """45 prompts go in three requests; choice j*n + i is choice i of prompt j. Greedy, so both choices are the same."""
    assert len(seen["generated"]) == len(PROMPTS)
    for index in (0, 19, 20, 44):
        alone = runtime.complete(PROMPTS[index], max_tokens=6, temperature=0)["choices"][0]["text"]
        assert seen["generated"][index] == [alone] * 2
    assert seen["generated_usage"]["completion_tokens"] <= 45 * 2 * 6


def test_completions_streamed_equal_whole(seen):
    assert "".join(seen["text_stream"]) == seen["text_invoked"] == seen["text_ainvoke"]
    assert "Tokyo" in seen["text_invoked"]


def test_errors_are_langchains_own(seen):
    assert seen["overflow"] is True
    assert seen["not_found"] == "model_not_found"
