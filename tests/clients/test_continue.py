"""The Continue editor extension: chat with usage, and autocompletion with a dozen stops, many of them special tokens.

The rules by which it reads a stream are here in our own words. Sources, in github.com/continuedev/continue:
packages/fetch/src/stream.ts (`streamResponse`, `streamSse`), packages/openai-adapters/src/apis/OpenAI.ts
(`chatCompletionStream`), core/llm/llms/OpenAI.ts (`_legacystreamComplete`),
core/autocomplete/templating/AutocompleteTemplate.ts.
"""

from __future__ import annotations

import json

import httpx
import pytest

STOPS_OF_CODERS = [
    *("<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "</fim_middle>", "</code>"),
    *("<repo_name>", "<|im_start|>", "<|im_end|>", "<gh_stars>", "/src/", "#- coding: utf-8", "```", "\ndef test"),
]
"""Those of its template for models like StarCoder, more of our model's own special tokens, and plain text."""
CODE = "def add(first, second):\n    return first +"


class ContinueError(Exception):
    """What the extension shows its user."""


def iterate_events(response):
    """Yield the objects of a stream.

    Only status 200 is a stream. A line is `data:` with JSON, which may carry an error; or ends it all, as a comment
    that begins with `: ping` does; or is passed over. Lines end in LF, and nothing strips a CR.
    """
    if response.status_code != 200:
        raise ContinueError(response.read().decode())
    buffer = ""
    for part in response.iter_text():
        buffer += part
        while "\n" in buffer:
            line, _, buffer = buffer.partition("\n")
            if line.startswith(("data: [DONE]", "data:[DONE]", ": ping")):
                return
            if line.startswith("data:"):
                yield _parse(line.removeprefix("data:").removeprefix(" "))
    if buffer:
        raise ContinueError(f"left over: {buffer!r}")


def _parse(text):
    try:
        data = json.loads(text)
    except ValueError as error:
        raise ContinueError(f"Malformed JSON sent from server: {text}") from error
    if data.get("error"):
        raise ContinueError(f"Error streaming response: {data['error']['message']}")
    return data


def read_chat(response):
    """Give text and usage of a chat; text in a chunk whose usage is truthy is lost."""
    text, usage = "", None
    for chunk in iterate_events(response):
        if chunk.get("usage"):
            usage = chunk["usage"]
        elif chunk["choices"]:
            text += chunk["choices"][0]["delta"].get("content") or ""
    return text, usage


def read_completion(response):
    """Give the text of an autocompletion; a chunk without a choice or without text adds nothing."""
    texts = [chunk["choices"][0]["text"] for chunk in iterate_events(response) if chunk.get("choices")]
    return "".join(text for text in texts if text)


@pytest.fixture
def chat(runtime):
    """A chat as it sends it."""

    def chat(**changes):
        body = {
            "model": runtime.model,
            "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
            "max_tokens": 32,
            "stream_options": {"include_usage": True},
            **changes,
        }
        return runtime.stream("/v1/chat/completions", body)

    return chat


@pytest.fixture
def autocomplete(runtime):
    """An autocompletion as it sends it, unset parameters left out."""

    def autocomplete(prompt, **changes):
        body = {
            "model": runtime.model,
            "prompt": prompt,
            "max_tokens": 32,
            "temperature": 0.01,
            "stop": STOPS_OF_CODERS,
            **changes,
        }
        return runtime.stream("/v1/completions", body)

    return autocomplete


def test_chat_loses_no_text_to_its_usage(chat, runtime):
    with chat() as response:
        text, usage = read_chat(response)
    body = {"model": runtime.model, "messages": [{"role": "user", "content": "What is the capital of Japan?"}]}
    whole = runtime.post("/v1/chat/completions", {**body, "max_tokens": 32}).json()
    assert text == whole["choices"][0]["message"]["content"]
    assert usage == whole["usage"]


def test_autocompletion_takes_a_dozen_stops(autocomplete, runtime):
    with autocomplete(CODE) as response:
        assert response.status_code == 200
        text = read_completion(response)
    assert text.lstrip().startswith("second")
    assert not any(stop in text for stop in STOPS_OF_CODERS)
    counts = [
        runtime.post("/tokenize", {"prompt": stop, "add_special_tokens": False}).json()["count"]
        for stop in STOPS_OF_CODERS
    ]
    assert counts.count(1) >= 6, "these stops should be special tokens of the model"


@pytest.mark.parametrize("stop", ["<|im_end|>", "<|endoftext|>"])
def test_a_special_token_stops_by_its_id(autocomplete, stop):
    """It is never in the text, so only its id can be told; the model is led to write it."""
    bias = {"<|im_end|>": 2, "<|endoftext|>": 0}[stop]
    with autocomplete(CODE, logit_bias={bias: 100}, end_id=[1], stop=[*STOPS_OF_CODERS, stop]) as response:
        events = list(iterate_events(response))
    assert "".join(event["choices"][0]["text"] for event in events) == ""
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_a_stop_across_tokens_is_held_back(autocomplete):
    with autocomplete("One, two, three, four,", stop=[" six, sev"], max_tokens=16, temperature=0) as response:
        text = read_completion(response)
    assert text == " five,"


def test_an_error_is_no_stream(autocomplete):
    with autocomplete(CODE, temperature=3) as response, pytest.raises(ContinueError, match="temperature"):
        list(iterate_events(response))


def test_lines_are_as_its_parser_wants_them(chat):
    """No CR, no `: ping`, a space after the colon, `[DONE]` last."""
    with chat() as response:
        raw = response.read()
    assert b"\r" not in raw
    lines = raw.decode().split("\n")
    assert {line[:6] for line in lines if line and not line.startswith(":")} == {"data: "}
    assert not any(line.startswith(": ping") for line in lines)
    assert raw.endswith(b"data: [DONE]\n\n")


def test_listing_is_what_it_reads(runtime):
    answer = httpx.get(f"{runtime.url}/v1/models", headers={**runtime.headers, "api-key": runtime.key}, timeout=30)
    assert [model["id"] for model in answer.json()["data"]] == [runtime.model]
