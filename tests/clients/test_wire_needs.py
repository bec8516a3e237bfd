"""What clients that are no library need: Open WebUI, and the load clients vllm bench, guidellm and aiperf."""

from __future__ import annotations

import json

import httpx
import pytest

PARTS = [
    {
        "role": "user",
        "content": [{"type": "text", "text": "What is the capital"}, {"type": "text", "text": " of Japan?"}],
    }
]


def events_of(response):
    lines = [line for line in response.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_open_webui_lists_models_below_the_base_url(runtime):
    answer = httpx.get(f"{runtime.url}/v1/models", headers=runtime.headers, timeout=30)
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["object"] == "list"


def test_open_webui_knows_a_stream_by_its_content_type(runtime):
    with runtime.stream("/v1/chat/completions", {"model": runtime.model, "messages": PARTS, "max_tokens": 2}) as answer:
        assert "text/event-stream" in answer.headers["content-type"]
        answer.read()


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/v1/chat/completions", {"messages": []}, {}, 400),
        ("/v1/chat/completions", {"model": "other", "messages": PARTS, "stream": True}, {}, 404),
        ("/v1/chat/completions", {}, {"Authorization": "Bearer sk-wrong"}, 401),
        ("/v1/embeddings", {}, {}, 404),
    ],
)
def test_open_webui_reads_errors_as_json(runtime, path, body, headers, status):
    answer = runtime.post(path, body, headers={**runtime.headers, **headers})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"]


def test_load_clients_get_as_many_tokens_as_they_ask_for(runtime):
    """Content as parts, `ignore_eos`, usage in each chunk; the first chunk is the time to the first token."""
    body = {
        "model": runtime.model,
        "messages": PARTS,
        "max_completion_tokens": 40,
        "ignore_eos": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    with runtime.stream("/v1/chat/completions", body) as answer:
        events = events_of(answer)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    counts = [event["usage"]["completion_tokens"] for event in events]
    assert counts == sorted(counts)
    assert counts[-1] == 40
    assert events[-1]["choices"] == []
    assert events[-2]["choices"][0]["finish_reason"] == "length"


def test_load_clients_send_token_ids_and_read_usage(runtime):
    ids = runtime.post("/tokenize", {"prompt": "One, two, three"}).json()["tokens"]
    body = {"model": runtime.model, "prompt": ids, "max_tokens": 8, "ignore_eos": True, "temperature": 0.0}
    body |= {"repetition_penalty": 1.0, "logprobs": None, "stream_options": {"include_usage": True}}
    with runtime.stream("/v1/completions", body) as answer:
        events = events_of(answer)
    assert events[-1]["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 8, "total_tokens": len(ids) + 8}


def test_load_clients_find_health_beside_v1_without_a_key(runtime):
    assert httpx.get(f"{runtime.url}/health", timeout=30).status_code == 200
