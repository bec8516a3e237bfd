"""What becomes of an engine that is lost: each life is a real client, and the test plays the engine behind it."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time

import pytest

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import EngineStats, FinishReason, ModelInfo, Request, RequestId, SamplingParams
from dedicate_runtime.engine import wire
from dedicate_runtime.engine.client import ENGINE_DIED, EngineClient
from dedicate_runtime.engine.interface import EngineLoss, EngineState
from dedicate_runtime.engine.supervisor import MAX_RESTARTS, EngineSupervisor
from dedicate_runtime.errors import EngineUnavailableError, ExitCode, StartError

CONFIG = EngineConfig(
    model="hf://some/model",
    revision="main",
    device=DeviceChoice.CPU,
    dtype=DtypeChoice.AUTO,
    max_num_seqs=2,
    max_num_batched_tokens=8,
    max_queued_requests=1,
)
MODEL = ModelInfo(
    folder="/cache/snapshots/1",
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
    num_steps=0,
    last_step_s=0.0,
)
PATIENCE_S = 10


class Stage:
    """Starts clients whose engines the test plays; `lives` has the configuration and the far end of each."""

    def __init__(self):
        self.lives = []
        self.losses = []
        self.answer = lambda: wire.Ready(model=MODEL, stats=STATS)

    async def start(self, config):
        ours, theirs = socket.socketpair()
        client = await EngineClient.connect(ours, config)
        _, writer = await asyncio.open_unix_connection(sock=theirs)
        self.lives.append((config, writer))
        if (frame := self.answer()) is not None:
            writer.write(wire.encode(frame))
        return client

    async def hang_up(self):
        writer = self.lives[-1][1]
        writer.close()
        await writer.wait_closed()

    def observe_loss(self, cause):
        self.losses.append(cause)


@pytest.fixture
async def stage():
    stage = Stage()
    yield stage
    for _, writer in stage.lives:
        writer.close()


@pytest.fixture
async def engine(stage):
    supervisor = EngineSupervisor(await stage.start(CONFIG), CONFIG, stall_s=0.2, start=stage.start)
    supervisor.tell(stage)
    async with asyncio.timeout(PATIENCE_S):
        await supervisor.wait_ready()
        yield supervisor
        await supervisor.aclose()


def make_request(name):
    sampling = SamplingParams(max_tokens=3, end_ids=frozenset())
    return Request(request_id=RequestId(name), prompt_token_ids=(1, 2), sampling=sampling)


async def test_first_start_that_fails_is_not_repeated(stage):
    stage.answer = lambda: wire.StartFailed(exit_code=ExitCode.GATED_REPO, sentence="No access.")
    supervisor = EngineSupervisor(await stage.start(CONFIG), CONFIG, stall_s=1.0, start=stage.start)
    with pytest.raises(StartError, match="No access"):
        await supervisor.wait_ready()
    assert supervisor.state is EngineState.DEAD
    await supervisor.aclose()
    assert len(stage.lives) == 1


async def test_lost_engine_is_unavailable_at_once_and_then_replaced(stage, engine):
    stream = await engine.submit([make_request("a")])
    await stage.hang_up()
    await engine.wait_lost()
    (output,) = [output async for output in stream]
    assert (output.finish_reason, output.error) == (FinishReason.ERROR, ENGINE_DIED)
    assert engine.state is EngineState.RESTARTING
    with pytest.raises(EngineUnavailableError, match="being started again"):
        await engine.submit([make_request("b")])
    fewer_blocks = dataclasses.replace(MODEL, num_kv_blocks=3)
    stage.answer = lambda: wire.Ready(model=fewer_blocks, stats=STATS)
    await engine.restart()
    assert engine.state is EngineState.READY
    assert engine.model == fewer_blocks
    assert stage.losses == [EngineLoss.DIED]
    await engine.submit([make_request("a")])


async def test_model_is_loaded_again_from_the_folder_that_the_api_reads(stage, engine):
    await stage.hang_up()
    await engine.wait_lost()
    await engine.restart()
    (first, _), (second, _) = stage.lives
    assert (first.model, first.revision) == ("hf://some/model", "main")
    assert second == dataclasses.replace(first, model=MODEL.folder, revision=None)


async def test_engine_that_owes_an_answer_for_too_long_is_killed(stage, engine):
    stream = await engine.submit([make_request("a")])
    await engine.wait_lost()
    assert [output.error async for output in stream] == [ENGINE_DIED]
    assert stage.losses == [EngineLoss.HUNG]
    await engine.restart()
    assert engine.state is EngineState.READY


async def test_idle_engine_is_never_taken_for_a_hung_one(stage, engine):
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):  # more than twice the bound for a stall
            await engine.wait_lost()
    assert stage.losses == []


async def test_engines_that_die_one_after_another_end_the_runtime(stage, engine):
    for _ in range(MAX_RESTARTS):
        await stage.hang_up()
        await engine.wait_lost()
        await engine.restart()
    await stage.hang_up()
    await engine.wait_lost()
    with pytest.raises(StartError, match="3 times in 600 s") as caught:
        await engine.restart()
    assert caught.value.exit_code is ExitCode.INTERNAL_ERROR
    assert len(stage.lives) == 1 + MAX_RESTARTS


async def test_losses_long_past_do_not_count(stage):
    client = await stage.start(CONFIG)
    engine = EngineSupervisor(client, CONFIG, stall_s=1.0, restart_window_s=0.0, start=stage.start)
    await engine.wait_ready()
    for _ in range(MAX_RESTARTS + 2):
        await stage.hang_up()
        await engine.wait_lost()
        await engine.restart()
    assert engine.state is EngineState.READY
    await engine.aclose()


async def test_engine_that_does_not_come_up_again_ends_the_runtime_with_its_reason(stage, engine):
    stage.answer = lambda: wire.StartFailed(exit_code=ExitCode.DEVICE_UNAVAILABLE, sentence="No device.")
    await stage.hang_up()
    await engine.wait_lost()
    with pytest.raises(StartError, match="No device") as caught:
        await engine.restart()
    assert caught.value.exit_code is ExitCode.DEVICE_UNAVAILABLE


async def test_engine_that_loads_for_ever_ends_the_runtime(stage, engine):
    stage.answer = lambda: None
    await stage.hang_up()
    await engine.wait_lost()
    started = time.monotonic()
    with pytest.raises(StartError, match="not back after"):
        await engine.restart()
    assert time.monotonic() - started >= 0.2


async def test_loss_while_draining_is_nobodys_business(stage, engine):
    stream = await engine.submit([make_request("a")])
    draining = asyncio.create_task(engine.drain(PATIENCE_S))
    await asyncio.sleep(0)
    await stage.hang_up()
    await draining
    assert [output.finish_reason async for output in stream] == [FinishReason.ERROR]
    assert len(stage.lives) == 1
