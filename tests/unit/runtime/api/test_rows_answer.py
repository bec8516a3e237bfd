"""Rows of docs/api.md on answers: how they end, what they cost, their bytes, failures."""

from __future__ import annotations

import asyncio
import json

import pytest

from dedicate_runtime.api.sse import EventStream, StreamWatch
from tests.unit.runtime.api.wire import KEYS, assert_envelope, chunks_of

BOTH = ("chat", "complete")
KEY = "sk-unit-test"


USAGE = {"prompt_tokens": 3, "completion_tokens": 14, "total_tokens": 17}


@pytest.mark.row("finish_reason")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("group", [1, 100])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "stop"),
        ({"stop": ["lo"]}, "stop"),
        ({"stop": ["."]}, "stop"),
        ({"max_tokens": 5}, "length"),
        ({"max_tokens": 14}, "stop"),
        ({"max_tokens": 13}, "length"),
        ({"max_tokens": 13, "stop": ["."]}, "stop"),
        ({"max_tokens": 13, "stop": [".x"]}, "length"),
        ({"ignore_eos": True}, "length"),
    ],
    ids=str,
)
async def test_finish_reason(api, call, group, fields, reason):
    api.script(group=group)
    ask = getattr(api, call)
    whole = (await ask(n=2, **fields)).json()["choices"]
    assert [choice["finish_reason"] for choice in whole] == [reason, reason]
    reasons = {0: [], 1: []}
    for chunk in chunks_of(await ask(n=2, stream=True, **fields)):
        for choice in chunk["choices"]:
            reasons[choice["index"]].append(choice["finish_reason"])
    for series in reasons.values():
        assert series[-1] == reason
        assert set(series[:-1]) <= {None}


@pytest.mark.row("usage")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, USAGE),
        ({"n": 2}, {"prompt_tokens": 3, "completion_tokens": 28, "total_tokens": 31}),
        ({"prompt": ["Hi", "x"], "n": 2}, {"prompt_tokens": 5, "completion_tokens": 56, "total_tokens": 61}),
        ({"max_tokens": 5}, {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}),
        ({"stop": ["lo"]}, {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}),
        ({"max_tokens": 0, "echo": True}, {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}),
    ],
    ids=str,
)
async def test_usage_is_the_same_whole_and_streamed(api, fields, expected):
    fields = {"prompt": "Hi", **fields}
    assert (await api.complete(**fields)).json()["usage"] == expected
    *chunks, last = chunks_of(await api.complete(**fields, stream=True, stream_options={"include_usage": True}))
    assert (last["choices"], last["usage"]) == ([], expected)
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)


@pytest.mark.row("usage")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize(
    "options",
    [{}, {"stream_options": None}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}],
    ids=str,
)
async def test_usage_of_streams_only_on_request(api, call, options):
    for chunk in chunks_of(await getattr(api, call)(stream=True, **options)):
        assert not chunk.get("usage")
        assert chunk["choices"]


@pytest.mark.row("usage")
@pytest.mark.parametrize("call", BOTH)
async def test_usage_continuous_counts_up(api, call):
    options = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = chunks_of(await getattr(api, call)(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == last["usage"]["completion_tokens"] == 14


@pytest.mark.row("usage")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("fields", [{}, {"stream": False}, {"stream": None}], ids=str)
@pytest.mark.parametrize("options", [{}, {"include_usage": True}, {"include_usage": False}], ids=str)
async def test_usage_options_without_a_stream(api, call, fields, options):
    response = await getattr(api, call)(stream_options=options, **fields)
    assert assert_envelope(response, 400)["param"] == "stream_options"


@pytest.mark.row("SSE")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("text", ["Hello", "two\nlines\r\nand \u2028 more", "\u00e9\U0001f999", ""], ids=repr)
async def test_sse_bytes(api, call, text):
    api.script(text=text)
    response = await getattr(api, call)(stream=True)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    assert b"\r" not in response.content
    *frames, rest = response.content.split(b"\n\n")
    assert rest == b""
    assert frames[-1] == b"data: [DONE]"
    assert all(frame.startswith(b"data: {") and b"\n" not in frame for frame in frames[:-1])
    choices = [chunk["choices"][0] for chunk in chunks_of(response)]
    pieces = [choice["text"] if call == "complete" else choice["delta"].get("content", "") for choice in choices]
    assert "".join(pieces) == text


@pytest.mark.row("SSE")
async def test_sse_comments_while_nothing_comes_prefill_included():
    """Headers go out before there is a token, and comments follow until there is."""
    sent, enough = [], asyncio.Event()

    async def silence():
        await enough.wait()
        yield b"data: [DONE]\n\n"

    async def close():
        pass

    async def receive():
        await asyncio.Event().wait()

    async def send(message):
        sent.append(message)
        if len(sent) == 4:
            enough.set()

    async with asyncio.timeout(10):
        await EventStream(silence(), close, watch=StreamWatch(keep_alive_s=0.01))({"type": "http"}, receive, send)
    assert sent[0]["type"] == "http.response.start"
    assert {message["body"] for message in sent[1:4]} == {b": keep-alive\n\n"}
    assert sent[-2]["body"] == b"data: [DONE]\n\n"


@pytest.mark.row("failure in a stream")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("after", [0, 1, 5])
async def test_failure_in_a_stream(api, call, after):
    api.script(fail_after=after)
    *chunks, last = chunks_of(await getattr(api, call)(stream=True, n=2, stream_options={"include_usage": True}))
    assert set(last) == {"error"}
    assert set(last["error"]) == KEYS
    assert last["error"]["code"] == "internal_error"
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])
    assert api.engine.streams[0].is_closed


@pytest.mark.row("errors")
@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/", b"", 404, None),
        ("GET", "/unit/v1", b"", 404, None),
        ("POST", "/unit/v1/responses", b"{}", 404, None),
        ("GET", "/unit/v1/models/other/model", b"", 404, "model_not_found"),
        ("GET", "/unit/v1/chat/completions", b"", 405, None),
        ("DELETE", "/unit/v1/models", b"", 405, None),
        ("POST", "/unit/health", b"", 405, None),
        ("POST", "/unit/v1/completions", b"", 400, None),
        ("POST", "/unit/v1/completions", b"{}", 400, None),
        ("POST", "/unit/v1/completions", b'{"model": 5}', 400, None),
        ("POST", "/unit/v1/completions", b"[]", 400, None),
        ("POST", "/unit/v1/completions", b"{", 400, None),
        ("POST", "/unit/tokenize", b"{}", 400, None),
        ("POST", "/unit/detokenize", b'{"tokens": [9999]}', 400, None),
    ],
)
async def test_errors(api, method, path, body, status, code):
    response = await api.client.request(method, path, content=body)
    assert assert_envelope(response, status)["code"] == code
    if status == 405:
        assert response.headers["allow"]
    if status == 404 and code is None:
        assert "/unit/docs" in response.json()["error"]["message"]


@pytest.mark.row("errors")
@pytest.mark.parametrize("call", BOTH)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("what", "status", "code"),
    [
        ("queue full", 429, "queue_full"),
        ("loading", 503, "loading"),
        ("draining", 503, "draining"),
        ("engine dead", 503, "engine_unavailable"),
    ],
)
async def test_errors_that_pass_say_when_to_come_back(make_api, call, stream, what, status, code):
    api = make_api(serving=what != "loading")
    api.script(queue_full=what == "queue full")
    if what == "draining":
        api.readiness.start_draining()
    if what == "engine dead":
        await api.engine.aclose()
    response = await getattr(api, call)(stream=stream)
    assert assert_envelope(response, status)["code"] == code
    assert 0 < int(response.headers["retry-after"]) <= 120


@pytest.mark.row("errors")
@pytest.mark.parametrize("headers", [{"content-length": str(10**9)}, {"content-length": str(33 * 2**20)}], ids=str)
async def test_errors_body_too_large(api, headers):
    response = await api.client.post("/unit/v1/completions", content=b"{}", headers=headers)
    assert assert_envelope(response, 413)["code"] == "request_too_large"


@pytest.mark.row("errors")
@pytest.mark.parametrize(
    ("sent", "echoed"),
    [("mine-1", True), ("x" * 128, True), ("x" * 129, False), ("two words", False), ("", False), (None, False)],
)
@pytest.mark.parametrize("path", ["/unit/version", "/nowhere", "/unit/v1/chat/completions", "/unit/v1/models"])
async def test_errors_and_all_answers_have_a_request_id(api, path, sent, echoed):
    response = await api.client.get(path, headers={} if sent is None else {"x-request-id": sent})
    (found,) = response.headers.get_list("x-request-id")
    assert (found == sent) is echoed
    assert found


@pytest.mark.row("disconnect")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0, 2])
async def test_disconnect_gives_the_sequences_up(api, stream, after):
    api.script(hang_after=after)
    body = json.dumps({"model": "alias", "prompt": "x", "n": 2, "stream": stream}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/unit/v1/completions",
        "raw_path": b"/unit/v1/completions",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        if messages:
            return messages.pop()
        await api.engine.is_hanging.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    async with asyncio.timeout(10):
        await api.app(scope, receive, send)
    assert api.engine.streams[0].is_closed
    assert b"[DONE]" not in b"".join(message.get("body", b"") for message in sent)
