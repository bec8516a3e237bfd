"""What goes wrong in a step, injected into an engine with a real model: who is told, who goes on, and what is freed.

Elsewhere: the queue is full, SIGTERM under load, the engine is killed or hangs, weights are corrupt
(`test_http_lifecycle`, through the program); the client is gone in mid-stream (`test_http_generation`); the cache runs
out (`test_engine_soak`).
"""

from __future__ import annotations

import asyncio

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dedicate_runtime.core.config import AttentionChoice, DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.faults import DeviceLostError, StepOutOfMemoryError
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import assemble_engine
from dedicate_runtime.engine.client import ENGINE_DIED
from dedicate_runtime.engine.engine import STEP_FAILED
from dedicate_runtime.engine.inprocess import start_engine_in_thread
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.worker.build import build_worker

DEADLINE_S = 120
VOCAB_SIZE = 64
POISON = 63
"""A token whose embedding is not a number; greedy tokens of the other prompts here never are it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = float("nan")
        model.lm_head.weight[POISON] = 0
    model.save_pretrained(path)
    return path


def make_config(folder, **fields):
    base = {
        "device": DeviceChoice.CPU,
        "dtype": DtypeChoice.FLOAT32,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 32,
        "max_queued_requests": 8,
        "kv_cache_tokens": 1024,
    }
    return EngineConfig(model=str(folder), **{**base, **fields})


class FaultyRunner:
    """The real runner, with a fault before each batch that `strikes` picks."""

    def __init__(self, runner):
        self._runner = runner
        self.max_steps_ahead = runner.max_steps_ahead
        self.strikes = lambda batch: False
        self.fault = None
        self.num_faults = 0

    def launch(self, batch):
        if self.strikes(batch):
            self.num_faults += 1
            raise self.fault
        return self._runner.launch(batch)


class Faulty:
    """An engine of its own thread whose runner can be made to fail."""

    def __init__(self, config):
        self._config = config
        self.runner = None

    def _build(self, config, starts):
        worker = build_worker(config)
        self.runner = FaultyRunner(worker.runner)
        return assemble_engine(config, worker.model, self.runner, starts), worker.model

    async def __aenter__(self):
        self.client = await start_engine_in_thread(self._config, self._build)
        async with asyncio.timeout(DEADLINE_S):
            await self.client.wait_ready()
        return self

    async def __aexit__(self, *_):
        await self.client.aclose()

    async def ask(self, request):
        """Tokens, reason and error of one request."""
        async with asyncio.timeout(DEADLINE_S):
            outputs = [output async for output in await self.client.submit([request])]
        return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason, outputs[-1].error

    async def ask_all(self, requests):
        return await asyncio.gather(*(self.ask(request) for request in requests))

    async def until_idle(self):
        """Returns once nothing runs and every block is free; fails where one is lost."""
        async with asyncio.timeout(DEADLINE_S):
            while not (  # noqa: ASYNC110 - gauges have no event
                self.client.stats.num_running == self.client.stats.num_waiting == 0
                and self.client.stats.num_free_blocks == self.client.stats.num_blocks
            ):
                await asyncio.sleep(0.005)


def make_request(name, prompt, max_tokens=12):
    sampling = SamplingParams(max_tokens=max_tokens, end_ids=frozenset(), temperature=0.0)
    return Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=sampling)


def make_company(number=4):
    return [make_request(f"r{index}", range(1 + index, 12 + 3 * index)) for index in range(number)]


def tokens_of(answers):
    assert all((reason, error) == (FinishReason.LENGTH, None) for _, reason, error in answers)
    return [tokens for tokens, _, _ in answers]


async def test_exception_in_a_step_fails_that_batch_and_no_more(folder):
    async with Faulty(make_config(folder)) as engine:
        expected = tokens_of([await engine.ask(request) for request in make_company()])
        engine.runner.fault = RuntimeError("the kernel was in a bad mood")
        engine.runner.strikes = lambda batch: any(row.request_id == "bad" for row in batch.rows)
        tokens, reason, error = await engine.ask(make_request("bad", range(1, 9)))
        assert (tokens, reason, error) == ([], FinishReason.ERROR, STEP_FAILED)
        assert engine.client.state is EngineState.READY
        assert tokens_of(await engine.ask_all(make_company())) == expected
        await engine.until_idle()


async def test_step_that_does_not_fit_is_done_in_smaller_ones(folder):
    """Nobody notices: the same tokens, from steps that a device with less memory can do."""
    async with Faulty(make_config(folder)) as engine:
        expected = tokens_of([await engine.ask(request) for request in make_company()])
        engine.runner.fault = StepOutOfMemoryError("7 tokens at most")
        engine.runner.strikes = lambda batch: batch.num_tokens > 7
        assert tokens_of(await engine.ask_all(make_company())) == expected
        assert engine.runner.num_faults > 0
        await engine.until_idle()


async def test_step_of_one_token_that_does_not_fit_is_told(folder):
    async with Faulty(make_config(folder)) as engine:
        engine.runner.fault = StepOutOfMemoryError("nothing fits")
        engine.runner.strikes = lambda batch: True
        _, reason, error = await engine.ask(make_request("a", range(1, 9)))
        assert reason is FinishReason.ERROR
        assert "memory" in error
        engine.runner.strikes = lambda batch: False
        assert (await engine.ask(make_request("b", range(1, 9))))[1] is FinishReason.LENGTH
        await engine.until_idle()


@pytest.mark.parametrize("backend", [AttentionChoice.TORCH, AttentionChoice.AUTO])
async def test_row_of_no_numbers_fails_alone(folder, backend):
    """Its company is not touched, and neither is who gets its blocks afterwards, which hold no numbers either."""
    config = make_config(folder, attention_backend=backend, kv_cache_tokens=512, has_prefix_cache=False)
    async with Faulty(config) as engine:
        company = make_company(3)
        expected = tokens_of([await engine.ask(request) for request in company])
        poisoned = make_request("poisoned", [1, 2, POISON] * 9)
        (_, reason, error), *answers = await engine.ask_all([poisoned, *company])
        assert reason is FinishReason.ERROR
        assert "not numbers" in error
        assert tokens_of(answers) == expected
        for _ in range(3):
            await engine.ask(make_request("poisoned", [POISON] * 400, max_tokens=1))
        assert tokens_of(await engine.ask_all(company)) == expected
        await engine.until_idle()


async def test_client_gone_in_prefill_frees_its_blocks(folder):
    """Its prompt takes many steps; it leaves after the first of them."""
    async with Faulty(make_config(folder)) as engine:
        launched = asyncio.Event()
        loop = asyncio.get_running_loop()

        def note(batch):
            loop.call_soon_threadsafe(launched.set)
            return False

        engine.runner.strikes = note
        num_prompt_tokens = engine.client.stats.num_prompt_tokens
        stream = await engine.client.submit([make_request("long", [1 + i % 50 for i in range(480)])])
        async with asyncio.timeout(DEADLINE_S):
            await launched.wait()
        await stream.aclose()
        await engine.until_idle()
        assert engine.client.stats.num_prompt_tokens == num_prompt_tokens
        assert (await engine.ask(make_request("next", range(1, 9))))[1] is FinishReason.LENGTH


async def test_lost_device_ends_the_engine_and_every_answer(folder):
    async with Faulty(make_config(folder)) as engine:
        engine.runner.fault = DeviceLostError("fell off the bus")
        engine.runner.strikes = lambda batch: batch.num_decode_rows > 0
        answers = await engine.ask_all(make_company(2))
        assert [(reason, error) for _, reason, error in answers] == [(FinishReason.ERROR, ENGINE_DIED)] * 2
        assert engine.client.state is EngineState.DEAD
