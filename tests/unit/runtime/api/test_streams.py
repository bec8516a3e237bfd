"""Server-sent events, byte by byte, and what ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest

from dedicate_runtime.api.sse import DirectSend, EventStream, StreamWatch


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


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("group", [3, 100])
async def test_tokens_of_several_steps_in_one_chunk_are_the_same_answer(api, chat, group):
    """Under load tokens come together: text, log-probabilities, usage and finish reasons are those of one by one."""
    call = api.chat if chat else api.complete
    options = {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}

    async def answers(size):
        api.script(text="Hello, w\u00f6rld. \u20ac", group=size)
        usage = {"include_usage": True}
        chunks = payloads(await call(stream=True, n=2, stop=["ld."], stream_options=usage, **options))
        told = []
        for index in range(2):
            choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            logprobs = [c["logprobs"] for c in choices if c["logprobs"]]
            told.append(
                (
                    "".join(c["delta"].get("content", "") if chat else c["text"] for c in choices),
                    [entry for part in logprobs for entry in part["content" if chat else "tokens"]],
                    [offset for part in logprobs for offset in part.get("text_offset", [])],
                    [c["finish_reason"] for c in choices if c["finish_reason"]],
                )
            )
        return told, chunks[-1]["usage"]

    one_by_one, together = await answers(1), await answers(group)
    assert one_by_one == together
    assert [(text, reasons) for text, _, _, reasons in together[0]] == [("Hello, w\u00f6r", ["stop"])] * 2


class Wire:
    """The ASGI server's side of one stream. While it is `blocked`, nothing more is taken."""

    def __init__(self):
        self.sent = []
        self.gone = asyncio.Event()
        self.free = asyncio.Event()
        self.free.set()
        self.is_blocked = asyncio.Event()
        self.has_grown = asyncio.Event()

    async def receive(self):
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if not self.free.is_set():
            self.is_blocked.set()
            await self.free.wait()
        self.sent.append(message)
        self.has_grown.set()

    @property
    def bodies(self):
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    async def wait_until(self, condition):
        async with asyncio.timeout(10):
            while not condition():
                self.has_grown.clear()
                await self.has_grown.wait()


class Clock:
    """Stands still unless it is moved."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@contextlib.asynccontextmanager
async def serving(frames, wire, watch=None):
    """Serve a stream while the block runs; then it must end, with everything closed."""
    closed = asyncio.Event()

    async def close():
        closed.set()

    watch = StreamWatch() if watch is None else watch
    stream = EventStream(frames, close, watch=watch)
    task = asyncio.create_task(stream({"type": "http"}, wire.receive, wire.send))
    yield task
    async with asyncio.timeout(10):
        await task
    assert closed.is_set()
    assert watch.num_streams == 0


COMMENT = b": keep-alive\n\n"


async def endless(ended=None, more=None):
    """One frame, a second when `more` is set, and then no end."""
    try:
        yield b"data: x\n\n"
        if more is not None:
            await more.wait()
            yield b"data: y\n\n"
        await asyncio.Event().wait()
    finally:
        if ended is not None:
            ended.set()


async def block(wire, more):
    """Let the stream come to a frame that is not taken."""
    await wire.wait_until(lambda: wire.bodies)
    wire.free.clear()
    more.set()
    async with asyncio.timeout(10):
        await wire.is_blocked.wait()


async def test_status_line_goes_out_before_the_first_token():
    wire = Wire()

    async def frames():
        await asyncio.Event().wait()
        yield b""

    async with serving(frames(), wire):
        await wire.wait_until(lambda: wire.sent)
        assert wire.sent[0]["status"] == 200
        wire.gone.set()


@pytest.mark.parametrize("has_token", [False, True], ids=["in prefill", "between tokens"])
async def test_comment_comes_before_the_silence_is_over_fifteen_seconds(has_token):
    """However the looks fall: one that finds 11 s of silence leaves it, for the next is 3 s later."""
    wire, clock = Wire(), Clock()
    watch = StreamWatch(clock=clock)

    async def frames():
        if has_token:
            yield b"data: x\n\n"
        await asyncio.Event().wait()
        yield b""

    async with serving(frames(), wire, watch):
        await wire.wait_until(lambda: wire.bodies if has_token else wire.sent)
        for seconds, expected in ((11, 0), (3, 1), (11, 1), (1, 2)):
            clock.now += seconds
            watch.look()
            await asyncio.sleep(0)  # a comment has a task of its own
            await asyncio.sleep(0)
            assert wire.bodies.count(COMMENT) == expected
        wire.gone.set()


async def test_status_line_waits_for_a_moment_though_there_is_something_to_send():
    """A proxy in Go would now and then cut a stream that begins at once."""
    wire, never = Wire(), 1000.0
    async with serving(endless(), wire, StreamWatch(head_pause_s=never)):
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.sent == []
        wire.gone.set()
    assert wire.sent == []


async def test_status_line_leaves_with_the_first_token():
    wire, token = Wire(), asyncio.Event()

    async def frames():
        await token.wait()
        yield b"data: x\n\n"
        await asyncio.Event().wait()

    async with serving(frames(), wire, StreamWatch(head_pause_s=0, head_wait_s=1000.0)):
        for _ in range(10):
            await asyncio.sleep(0)
        assert wire.sent == []
        token.set()
        await wire.wait_until(lambda: wire.bodies)
        assert wire.bodies == [b"data: x\n\n"]
        wire.gone.set()


async def test_status_line_does_not_wait_long_for_a_token():
    wire = Wire()

    async def frames():
        await asyncio.Event().wait()
        yield b""

    async with serving(frames(), wire, StreamWatch(head_wait_s=0.001)):
        await wire.wait_until(lambda: wire.sent)
        wire.gone.set()
    assert [message["type"] for message in wire.sent] == ["http.response.start"]


async def test_a_stream_of_nothing_ends_as_any_other():
    wire = Wire()

    async def frames():
        for frame in ():
            yield frame

    async with serving(frames(), wire, StreamWatch(head_pause_s=0)):
        await wire.wait_until(lambda: len(wire.sent) == 2)
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_timer_looks_by_itself():
    wire = Wire()

    async def frames():
        await wire.wait_until(lambda: wire.bodies.count(COMMENT) == 2)
        yield b"data: x\n\n"

    async with serving(frames(), wire, StreamWatch(keep_alive_s=0.001)):
        pass
    assert wire.sent[0]["type"] == "http.response.start"
    assert wire.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


async def test_no_comment_while_something_is_being_sent():
    wire, clock, more = Wire(), Clock(), asyncio.Event()
    watch = StreamWatch(clock=clock)
    async with serving(endless(more=more), wire, watch):
        await block(wire, more)
        clock.now += 20
        watch.look()
        await asyncio.sleep(0)
        wire.free.set()
        await wire.wait_until(lambda: len(wire.bodies) > 1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert wire.bodies == [b"data: x\n\n", b"data: y\n\n"]
        wire.gone.set()


async def test_no_comment_after_the_end():
    """The stream ends between the look that finds it silent and the comment."""
    wire, clock, more = Wire(), Clock(), asyncio.Event()
    watch = StreamWatch(clock=clock)

    async def frames():
        yield b"data: x\n\n"
        await more.wait()

    async with serving(frames(), wire, watch):
        await wire.wait_until(lambda: wire.bodies)
        clock.now += 20
        more.set()
        watch.look()
    assert wire.bodies == [b"data: x\n\n", b""]


async def test_reader_that_takes_nothing_for_too_long_is_given_up():
    wire, clock, more, ended = Wire(), Clock(), asyncio.Event(), asyncio.Event()
    watch = StreamWatch(clock=clock, stalled_reader_s=60)
    async with serving(endless(ended, more), wire, watch):
        await block(wire, more)
        clock.now += 59
        watch.look()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not ended.is_set()
        clock.now += 1
        watch.look()
    assert ended.is_set()


async def test_disconnect_closes_a_stream_that_waits_for_tokens():
    wire, ended = Wire(), asyncio.Event()
    async with serving(endless(ended), wire):
        await wire.wait_until(lambda: wire.bodies)
        wire.gone.set()
    assert ended.is_set()


async def test_disconnect_before_the_first_token_closes_too():
    wire = Wire()
    wire.gone.set()

    async def frames():
        await asyncio.Event().wait()
        yield b""

    async with serving(frames(), wire):
        pass


async def test_disconnect_during_a_blocked_send_closes_too():
    wire, more, ended = Wire(), asyncio.Event(), asyncio.Event()
    async with serving(endless(ended, more), wire):
        await block(wire, more)
        wire.gone.set()
    assert ended.is_set()


async def test_layers_above_a_stream_see_its_beginning_and_its_end_alone():
    direct, layered = Wire(), Wire()

    async def app(scope, receive, send):
        async def through_a_layer(message):
            layered.sent.append(message)
            await send(message)

        async def frames():
            yield b"data: x\n\n"

        async def close():
            pass

        await EventStream(frames(), close, watch=StreamWatch())(scope, receive, through_a_layer)

    await DirectSend(app)({"type": "http"}, direct.receive, direct.send)
    assert [message["type"] for message in layered.sent] == ["http.response.start", "http.response.body"]
    assert layered.bodies == [b""]
    assert direct.bodies == [b"data: x\n\n", b""]
