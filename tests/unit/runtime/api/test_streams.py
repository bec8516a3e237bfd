"""Server-sent events, byte by byte, and what ends them."""

from __future__ import annotations

import asyncio
import json

import pytest

from dedicate_runtime.api.sse import EventStream


def payloads(response):
    """Split a stream into its payloads; the last must be `[DONE]`."""
    assert response.status_code == 200, response.text
    frames = response.text.split("\n\n")
    assert frames.pop() == ""
    assert frames.pop() == "data: [DONE]"
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


async def test_sse_bytes_and_headers(api):
    response = await api.chat(stream=True)
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert b"\r" not in response.content
    lines = response.content.split(b"\n\n")
    assert lines[-1] == b""
    assert lines[-2] == b"data: [DONE]"
    assert all(line.startswith(b"data: {") for line in lines[:-2])


async def test_chat_chunks(api):
    chunks = payloads(await api.chat(stream=True))
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello, world."
    assert deltas[-1] == {}
    assert all("usage" not in chunk for chunk in chunks)


@pytest.mark.parametrize("chat", [True, False])
async def test_finish_reason_is_null_until_the_last_chunk_once_per_choice(api, chat):
    call = api.chat if chat else api.complete
    chunks = payloads(await call(stream=True, n=2))
    reasons = {0: [], 1: []}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        reasons[choice["index"]].append(choice["finish_reason"])
    for series in reasons.values():
        assert series[-1] == "stop"
        assert set(series[:-1]) == {None}


async def test_completion_chunks(api):
    chunks = payloads(await api.complete(stream=True))
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello, world."


async def test_first_chunk_comes_with_the_first_token_even_if_its_text_waits(api):
    api.script(text="\u00e9!")  # its first byte is no character yet
    chunks = payloads(await api.complete(stream=True))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["", "\u00e9", "!", ""]


@pytest.mark.parametrize("chat", [True, False])
async def test_usage_in_one_last_chunk_without_choices(api, chat):
    call = api.chat if chat else api.complete
    chunks = payloads(await call(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 14


async def test_usage_continuous(api):
    chunks = payloads(
        await api.complete(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1


async def test_logprobs_in_chunks(api):
    api.script(text="Hi")
    chunks = payloads(await api.chat(stream=True, logprobs=True))
    entries = [
        entry for chunk in chunks if (logprobs := chunk["choices"][0]["logprobs"]) for entry in logprobs["content"]
    ]
    assert [entry["token"] for entry in entries] == ["H", "i", "<|end|>"]
    chunks = payloads(await api.complete(stream=True, logprobs=0))
    tokens = [
        token for chunk in chunks if (logprobs := chunk["choices"][0]["logprobs"]) for token in logprobs["tokens"]
    ]
    assert tokens == ["H", "i", "<|end|>"]


async def test_failure_in_a_stream_is_an_error_event_then_done(api):
    api.script(fail_after=3)
    chunks = payloads(await api.chat(stream=True))
    assert chunks[-1]["error"] == {
        "message": "The step failed.",
        "type": "server_error",
        "param": None,
        "code": "internal_error",
    }
    assert api.engine.streams[0].is_closed


async def test_failure_at_the_end_of_a_drain_is_worth_another_try(api):
    api.script(fail_after=3)
    api.engine.on_failure = api.readiness.start_draining
    chunks = payloads(await api.chat(stream=True))
    assert chunks[-1]["error"]["code"] == "draining"


async def test_unexpected_fault_in_a_stream_is_an_error_event_then_done(api, monkeypatch, caplog):
    async def break_down(_self):
        raise ZeroDivisionError("secret detail")
        yield

    await api.chat(stream=True)
    monkeypatch.setattr(type(api.engine.streams[0]), "__aiter__", break_down)
    response = await api.chat(stream=True)
    assert payloads(response)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in response.text
    assert "ZeroDivisionError" in caplog.text


class Wire:
    """The ASGI server's side of one stream."""

    def __init__(self):
        self.sent = []
        self.gone = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)


async def serve(frames, wire, **options):
    closed = asyncio.Event()

    async def close():
        closed.set()

    async with asyncio.timeout(10):
        await EventStream(frames, close, **options)({"type": "http"}, wire.receive, wire.send)
    assert closed.is_set()


async def test_keep_alive_comments_while_nothing_comes():
    wire = Wire()

    twice = asyncio.Event()

    async def send(message):
        wire.sent.append(message)
        if sum(sent.get("body") == b": keep-alive\n\n" for sent in wire.sent) == 2:
            twice.set()

    wire.send = send

    async def frames():
        await twice.wait()
        yield b"data: x\n\n"

    await serve(frames(), wire, keep_alive_s=0.001)
    assert wire.sent[0]["type"] == "http.response.start"
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_disconnect_closes_a_stream_that_waits_for_tokens():
    wire = Wire()
    ended = []

    async def frames():
        try:
            yield b"data: x\n\n"
            wire.gone.set()
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    await serve(frames(), wire)
    assert ended == [True]


async def test_disconnect_before_the_first_token_closes_too():
    wire = Wire()
    wire.gone.set()

    async def frames():
        await asyncio.Event().wait()
        yield b""

    await serve(frames(), wire)


async def test_disconnect_during_a_blocked_send_closes_too():
    wire = Wire()
    ended = []

    async def blocked_send(message):
        if message["type"] == "http.response.body":
            wire.gone.set()
            await asyncio.Event().wait()

    wire.send = blocked_send

    async def frames():
        try:
            yield b"data: x\n\n"
        finally:
            ended.append(True)

    await serve(frames(), wire)
    assert ended == [True]
