"""The client against an engine that the test itself plays, frame by frame, over a real socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import time

import pytest

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import (
    EngineStats,
    FinishReason,
    ModelInfo,
    Request,
    RequestId,
    SamplingParams,
    SequenceOutput,
)
from dedicate_runtime.engine import wire
from dedicate_runtime.engine.client import ENGINE_DIED, SHUTTING_DOWN, EngineClient
from dedicate_runtime.engine.interface import NO_TERMS, EngineState
from dedicate_runtime.errors import (
    EngineUnavailableError,
    ExitCode,
    QueueFullError,
    RefusalReason,
    StartError,
    TooManySequencesError,
)

CONFIG = EngineConfig(
    model="/models/none",
    device=DeviceChoice.CPU,
    dtype=DtypeChoice.AUTO,
    max_num_seqs=2,
    max_num_batched_tokens=8,
    max_queued_requests=1,
    max_queued_tokens=6,
)
MODEL = ModelInfo(
    folder="/models/none",
    vocab_size=100,
    max_model_len=64,
    dtype="float32",
    device="cpu",
    attention_backend="torch",
    num_kv_blocks=4,
    block_size=16,
)
STATS = EngineStats(
    num_running=0,
    num_waiting=0,
    num_free_blocks=4,
    num_blocks=4,
    num_preemptions=0,
    num_prompt_tokens=0,
    num_generated_tokens=0,
    num_steps=7,
    last_step_s=0.5,
)
PATIENCE_S = 10


class PlayedEngine:
    """The other end of the socket."""

    def __init__(self, reader, writer):
        self.reader = reader
        self.writer = writer

    def send(self, frame):
        self.writer.write(wire.encode(frame))

    def step(self, *outputs):
        self.send(wire.Stepped(outputs=list(outputs), stats=STATS))

    async def receive(self):
        async with asyncio.timeout(PATIENCE_S):
            header = await self.reader.readexactly(wire.LENGTH.size)
            return wire.decode_to_engine(await self.reader.readexactly(wire.LENGTH.unpack(header)[0]))

    async def hang_up(self):
        self.writer.close()
        await self.writer.wait_closed()


@pytest.fixture
async def loading():
    """A client whose engine is loading, and that engine."""
    ours, theirs = socket.socketpair()
    client = await EngineClient.connect(ours, CONFIG)
    engine = PlayedEngine(*await asyncio.open_unix_connection(sock=theirs))
    assert await engine.receive() == wire.Configure(CONFIG)
    yield client, engine
    await client.aclose()
    await engine.hang_up()


@pytest.fixture
async def ready(loading):
    client, engine = loading
    engine.send(wire.Ready(model=MODEL, stats=STATS))
    async with asyncio.timeout(PATIENCE_S):
        await client.wait_ready()
    return client, engine


def make_request(name, prompt=(1, 2)):
    sampling = SamplingParams(max_tokens=3, end_ids=frozenset({2}), logit_bias={5: -1.5})
    return Request(request_id=RequestId(name), prompt_token_ids=prompt, sampling=sampling)


async def wait_for_frame(client):
    """Returns once the client has taken in what the engine sent last."""
    seen = client.stats
    async with asyncio.timeout(PATIENCE_S):
        while client.stats is seen:  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.001)


async def collect(stream):
    async with asyncio.timeout(PATIENCE_S):
        return [output async for output in stream]


async def test_becomes_ready(loading):
    client, engine = loading
    assert client.state is EngineState.LOADING
    with pytest.raises(EngineUnavailableError):
        _ = client.model
    with pytest.raises(EngineUnavailableError, match="not ready"):
        await client.submit([make_request("a")])
    engine.send(wire.Ready(model=MODEL, stats=STATS))
    await client.wait_ready()
    assert client.state is EngineState.READY
    assert client.model == MODEL
    assert client.stats == STATS
    assert client.last_progress_s == 0.0


async def test_start_error_arrives_as_it_was_raised(loading):
    client, engine = loading
    engine.send(wire.StartFailed(exit_code=ExitCode.GATED_REPO, sentence="No access."))
    await engine.hang_up()
    with pytest.raises(StartError, match=r"No access\.") as caught:
        await client.wait_ready()
    assert caught.value.exit_code is ExitCode.GATED_REPO
    assert client.state is EngineState.DEAD


async def test_engine_that_ends_while_loading_is_an_internal_error(loading):
    client, engine = loading
    await engine.hang_up()
    with pytest.raises(StartError) as caught:
        await client.wait_ready()
    assert caught.value.exit_code is ExitCode.INTERNAL_ERROR


async def test_log_records_are_written_here(loading, caplog):
    client, engine = loading
    with caplog.at_level(logging.INFO):
        engine.send(wire.Log(logger="dedicate_runtime.worker.loader", level=logging.INFO, message="100% loaded"))
        engine.send(wire.Ready(model=MODEL, stats=STATS))
        await client.wait_ready()
    assert ("dedicate_runtime.worker.loader", logging.INFO, "100% loaded") in caplog.record_tuples


async def test_group_goes_over_whole_and_its_outputs_come_back_in_order(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("b")])
    assert await engine.receive() == wire.Submit([make_request("a"), make_request("b")])
    engine.step(SequenceOutput(request_id=RequestId("a"), token_ids=(4,)))
    engine.step(SequenceOutput(request_id=RequestId("b"), token_ids=(5, 2), finish_reason=FinishReason.STOP))
    engine.step(SequenceOutput(request_id=RequestId("a"), token_ids=(6,), finish_reason=FinishReason.LENGTH))
    outputs = await collect(stream)
    assert [token for o in outputs if o.request_id == "a" for token in o.token_ids] == [4, 6]
    assert [o.finish_reason for o in outputs if o.finish_reason] == [FinishReason.LENGTH, FinishReason.STOP]
    assert client.last_progress_s == 0.0


async def test_outputs_that_a_slow_reader_leaves_are_merged(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("probe")])
    for token in (4, 5, 6):
        engine.step(SequenceOutput(request_id=RequestId("a"), token_ids=(token,)))
    engine.step(SequenceOutput(request_id=RequestId("a"), finish_reason=FinishReason.LENGTH))
    engine.step(SequenceOutput(request_id=RequestId("probe"), finish_reason=FinishReason.LENGTH))
    await client.drain(PATIENCE_S)
    first, second = await collect(stream)
    assert first == SequenceOutput(request_id=RequestId("a"), token_ids=(4, 5, 6), finish_reason=FinishReason.LENGTH)
    assert second.request_id == "probe"


async def test_full_queue_refuses_a_group_whole(ready):
    client, _ = ready
    first = await client.submit([make_request("a"), make_request("b")])
    with pytest.raises(QueueFullError):
        await client.submit([make_request("c"), make_request("d")])
    await client.submit([make_request("e")])
    await first.aclose()
    await client.submit([make_request("f"), make_request("g")])


async def test_id_in_use_is_refused(ready):
    client, _ = ready
    await client.submit([make_request("a")])
    with pytest.raises(ValueError, match="in use"):
        await client.submit([make_request("a")])


async def test_silence_shows_while_an_answer_is_owed(ready):
    client, engine = ready
    await client.submit([make_request("a")])
    first = client.last_progress_s
    await asyncio.sleep(0.01)
    assert client.last_progress_s > first
    engine.step(SequenceOutput(request_id=RequestId("a"), finish_reason=FinishReason.LENGTH))
    await client.drain(PATIENCE_S)
    assert client.last_progress_s == 0.0


async def test_stream_has_the_times_of_each_sequence_once_it_has_ended(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("b"), make_request("c")])
    started = {RequestId("a"): time.monotonic(), RequestId("b"): time.monotonic()}
    last = SequenceOutput(request_id=RequestId("a"), token_ids=(2,), finish_reason=FinishReason.STOP)
    engine.send(wire.Stepped(outputs=[last], stats=STATS, started=started))
    async for output in stream:
        assert output.finish_reason is FinishReason.STOP
        break
    (whole,) = stream.times
    assert whole.submitted_at <= whole.started_at <= whole.first_token_at <= whole.ended_at
    assert whole.started_at == started["a"]
    await stream.aclose()
    in_prefill, in_queue = sorted(stream.times[1:], key=lambda each: each.started_at is None)
    assert (in_prefill.started_at, in_prefill.first_token_at) == (started["b"], None)
    assert (in_queue.started_at, in_queue.first_token_at) == (None, None)
    await stream.aclose()
    assert len(stream.times) == 3


async def test_closed_stream_aborts_what_is_unfinished_and_only_that(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("b")])
    await engine.receive()
    engine.step(SequenceOutput(request_id=RequestId("a"), token_ids=(2,), finish_reason=FinishReason.STOP))
    async for output in stream:
        assert output.request_id == "a"
        break
    await stream.aclose()
    await stream.aclose()
    assert await engine.receive() == wire.Abort([RequestId("b")])


async def test_engine_owes_a_frame_for_every_command(ready):
    """A hung engine is noticed although all its clients have given up."""
    client, engine = ready
    stream = await client.submit([make_request("a")])
    await stream.aclose()
    first = client.last_progress_s
    await asyncio.sleep(0.01)
    assert client.last_progress_s > first
    engine.step()
    async with asyncio.timeout(PATIENCE_S):
        while client.last_progress_s:  # noqa: ASYNC110 - a gauge has no event
            await asyncio.sleep(0.001)


async def test_prompt_tokens_that_wait_are_bounded(ready):
    client, engine = ready
    first = await client.submit([make_request("a"), make_request("b")])
    with pytest.raises(QueueFullError, match="4 of 6 prompt tokens"):
        await client.submit([make_request("c", prompt=(1, 2, 3))])
    engine.send(wire.Stepped(outputs=[], stats=STATS, started={RequestId("a"): 0.0}))
    await wait_for_frame(client)
    await client.submit([make_request("c", prompt=(1, 2, 3))])
    with pytest.raises(QueueFullError, match="of 3 sequences"):
        await client.submit([make_request("d")])
    await first.aclose()
    with pytest.raises(QueueFullError, match="3 of 6 prompt tokens"):
        await client.submit([make_request("d", prompt=(1, 2, 3, 4))])


async def test_prompt_over_the_bound_for_tokens_is_let_in_alone(ready):
    client, _ = ready
    await client.submit([make_request("long", prompt=(1,) * 9)])
    with pytest.raises(QueueFullError, match="9 of 6"):
        await client.submit([make_request("a")])


async def test_killed_client_fails_its_streams_at_once(ready):
    client, _ = ready
    stream = await client.submit([make_request("a")])
    client.kill()
    assert [output.error for output in await collect(stream)] == [ENGINE_DIED]
    async with asyncio.timeout(PATIENCE_S):
        await client.wait_dead()


async def test_output_that_crosses_an_abort_is_dropped(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("b")])
    await stream.abort(RequestId("a"))
    engine.step(
        SequenceOutput(request_id=RequestId("a"), token_ids=(4,)),
        SequenceOutput(request_id=RequestId("b"), token_ids=(2,), finish_reason=FinishReason.STOP),
    )
    assert [output.request_id for output in await collect(stream)] == ["b"]


async def test_abort_of_the_last_sequence_ends_the_iteration(ready):
    client, _ = ready
    stream = await client.submit([make_request("a")])
    reading = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    await stream.abort(RequestId("a"))
    assert await reading == []


async def test_closing_a_stream_ends_the_iteration(ready):
    client, _ = ready
    stream = await client.submit([make_request("a"), make_request("b")])
    reading = asyncio.create_task(collect(stream))
    await asyncio.sleep(0)
    await stream.aclose()
    assert await reading == []


class Refusals:
    """An observer of refusals alone."""

    def __init__(self):
        self.reasons = []

    def observe_refusal(self, reason):
        self.reasons.append(reason)


async def test_refusals_are_told_once_each_before_and_at_submission(ready):
    client, _ = ready
    observer = Refusals()
    client.tell(observer)
    client.check_room("", 3, NO_TERMS)
    await client.submit([make_request("a"), make_request("b")])
    with pytest.raises(QueueFullError):
        client.check_room("", 2, NO_TERMS)
    with pytest.raises(QueueFullError):
        await client.submit([make_request("c", prompt=(1, 2, 3))])
    assert observer.reasons == [RefusalReason.QUEUE_FULL, RefusalReason.QUEUE_TOKENS]
    with pytest.raises(TooManySequencesError, match="At most 3"):
        client.check_room("", 4, NO_TERMS)


async def test_wait_is_expected_only_when_it_can_be_told(ready):
    client, _ = ready
    assert client.expected_wait_s == 0.0
    await client.submit([make_request(name) for name in "abc"])
    assert client.expected_wait_s is None


async def test_dead_engine_fails_every_stream_and_every_submission(ready):
    client, engine = ready
    stream = await client.submit([make_request("a"), make_request("b")])
    await engine.hang_up()
    outputs = await collect(stream)
    assert {output.request_id for output in outputs} == {"a", "b"}
    assert all((o.finish_reason, o.error) == (FinishReason.ERROR, ENGINE_DIED) for o in outputs)
    assert client.state is EngineState.DEAD
    with pytest.raises(EngineUnavailableError, match="dead"):
        await client.submit([make_request("c")])


async def test_garbage_from_the_engine_is_its_death(ready):
    client, engine = ready
    stream = await client.submit([make_request("a")])
    engine.writer.write(wire.LENGTH.pack(3) + b"???")
    assert [output.error for output in await collect(stream)] == [ENGINE_DIED]


async def test_drain_lets_running_requests_finish(ready):
    client, engine = ready
    stream = await client.submit([make_request("a")])
    draining = asyncio.create_task(client.drain(PATIENCE_S))
    await asyncio.sleep(0)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await client.submit([make_request("b")])
    engine.step(SequenceOutput(request_id=RequestId("a"), token_ids=(2,), finish_reason=FinishReason.STOP))
    await draining
    assert [output.finish_reason for output in await collect(stream)] == [FinishReason.STOP]


async def test_drain_fails_what_is_left_at_its_deadline(ready):
    client, engine = ready
    stream = await client.submit([make_request("a")])
    await engine.receive()
    await client.drain(0.0)
    (output,) = await collect(stream)
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, SHUTTING_DOWN)
    assert await engine.receive() == wire.Abort([RequestId("a")])
