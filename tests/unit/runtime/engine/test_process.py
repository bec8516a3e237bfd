"""Client and engine in one process, over the real frames, with a runner that needs no model."""

from __future__ import annotations

import asyncio
import threading

import pytest

from dedicate_runtime.core.batch import FinishedStep, RowResult
from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, ModelInfo, Request, RequestId, SamplingParams
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.engine.inprocess import start_engine_in_thread
from dedicate_runtime.engine.interface import EngineState, StepKind
from dedicate_runtime.engine.starts import WatchedRunner
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

CONFIG = EngineConfig(
    model="/models/none",
    device=DeviceChoice.CPU,
    dtype=DtypeChoice.AUTO,
    max_num_seqs=2,
    max_num_batched_tokens=8,
    max_queued_requests=2,
)
MODEL = ModelInfo(
    folder="/models/none",
    vocab_size=1000,
    max_model_len=64,
    dtype="float32",
    device="cpu",
    attention_backend="torch",
    num_kv_blocks=16,
    block_size=4,
)
PATIENCE_S = 10


class GatedRunner:
    """Answers with the position of each token, a step at a time where a gate is set."""

    max_steps_ahead = 0

    def __init__(self):
        self.gate = threading.Semaphore(0)
        self.is_gated = False

    def launch(self, batch):
        if self.is_gated:
            assert self.gate.acquire(timeout=PATIENCE_S)
        return FinishedStep([RowResult(token_id=row.end if row.is_sampled else None) for row in batch.rows])


@pytest.fixture
def runner():
    return GatedRunner()


@pytest.fixture
async def client(runner):
    def build(config, starts):
        limits = SchedulerLimits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_sequences=config.max_sequences,
            max_model_len=MODEL.max_model_len,
        )
        scheduler = Scheduler(limits, BlockManager(num_blocks=MODEL.num_kv_blocks, block_size=MODEL.block_size))
        return Engine(scheduler, WatchedRunner(runner, starts), vocab_size=MODEL.vocab_size), MODEL

    client = await start_engine_in_thread(CONFIG, build)
    await client.wait_ready()
    yield client
    runner.is_gated = False
    runner.gate.release()
    await client.aclose()


def make_request(name, prompt_len=3, max_tokens=4):
    sampling = SamplingParams(max_tokens=max_tokens, end_ids=frozenset())
    return Request(request_id=RequestId(name), prompt_token_ids=(1,) * prompt_len, sampling=sampling)


async def collect(stream):
    async with asyncio.timeout(PATIENCE_S):
        outputs = [output async for output in stream]
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


async def wait_for_stats(client, condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition(client.stats):  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.001)


async def test_tokens_travel_both_ways(client):
    streams = [await client.submit([make_request(name, length)]) for name, length in (("a", 3), ("b", 20))]
    assert await collect(streams[0]) == ([3, 4, 5, 6], FinishReason.LENGTH)
    assert await collect(streams[1]) == ([20, 21, 22, 23], FinishReason.LENGTH)
    await wait_for_stats(client, lambda stats: stats.num_free_blocks == stats.num_blocks)


async def test_abort_frees_blocks_within_a_step(client, runner):
    runner.is_gated = True
    stream = await client.submit([make_request("a", max_tokens=40)])
    runner.gate.release()
    async with asyncio.timeout(PATIENCE_S):
        await anext(aiter(stream))
    assert client.stats.num_free_blocks < client.stats.num_blocks
    await stream.aclose()
    num_steps = client.stats.num_steps
    while client.stats.num_free_blocks < client.stats.num_blocks:
        seen = client.stats
        runner.gate.release()
        await wait_for_stats(client, lambda stats, seen=seen: stats is not seen)
    # The step that was running when the abort was sent, and the one that may have begun before it arrived.
    assert client.stats.num_steps - num_steps <= 2


async def test_request_that_the_engine_refuses_is_told_so(client):
    (output,) = [output async for output in await client.submit([make_request("long", prompt_len=64)])]
    assert output.finish_reason is FinishReason.ERROR
    assert "maximum context length is 64" in output.error


class Recorder:
    """An observer that keeps what it is told."""

    def __init__(self):
        self.steps = []
        self.times = {"queue": [], "prefill": [], "decode": []}

    def observe_step(self, kind, seconds):
        self.steps.append((kind, seconds))

    def observe_queue_time(self, seconds):
        self.times["queue"].append(seconds)

    def observe_prefill_time(self, seconds):
        self.times["prefill"].append(seconds)

    def observe_decode_time(self, seconds):
        self.times["decode"].append(seconds)


async def test_time_of_a_life_is_told_by_its_parts(client, runner):
    """Two sequences run and one waits for its place: of its time, the queue takes the most."""
    recorder = Recorder()
    client.tell(recorder)
    runner.is_gated = True
    streams = [await client.submit([make_request(name)]) for name in "abc"]
    runner.is_gated = False
    runner.gate.release()
    for stream in streams:
        await collect(stream)
    assert [len(times) for times in recorder.times.values()] == [3, 3, 3]
    assert all(seconds >= 0 for times in recorder.times.values() for seconds in times)
    assert recorder.times["queue"][2] > recorder.times["queue"][0]
    kinds = [kind for kind, _ in recorder.steps]
    assert kinds[0] is StepKind.PREFILL
    assert kinds.count(StepKind.DECODE) > kinds.count(StepKind.PREFILL)
    assert all(seconds >= 0 for _, seconds in recorder.steps)


async def test_sequence_that_ends_before_it_begins_is_not_waited_for(client, runner):
    runner.is_gated = True
    running = await client.submit([make_request("a"), make_request("b")])
    waiting = await client.submit([make_request("c")])
    await waiting.aclose()
    runner.is_gated = False
    runner.gate.release()
    recorder = Recorder()
    client.tell(recorder)
    await collect(running)
    assert len(recorder.times["decode"]) == 2


@pytest.mark.parametrize(
    ("error", "exit_code", "sentence"),
    [
        (StartError(ExitCode.MODEL_CORRUPT, "It is torn."), ExitCode.MODEL_CORRUPT, "It is torn."),
        (RuntimeError("odd"), ExitCode.INTERNAL_ERROR, "RuntimeError: odd"),
    ],
)
async def test_failed_start_is_told_with_its_code(error, exit_code, sentence):
    def build(*_):
        raise error

    client = await start_engine_in_thread(CONFIG, build)
    with pytest.raises(StartError, match=sentence) as caught:
        await client.wait_ready()
    assert caught.value.exit_code is exit_code
    assert client.state is EngineState.DEAD
    await client.aclose()
