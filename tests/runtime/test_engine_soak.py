"""Many requests of every kind at once, through client and frames: each is answered as it would be alone."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import build_engine
from dedicate_runtime.engine.inprocess import start_engine_in_thread
from dedicate_runtime.errors import QueueFullError

NUM_REQUESTS = 80
VOCAB_SIZE = 96
DEADLINE_S = 240


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(0)
    model = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    LlamaForCausalLM(model).save_pretrained(folder)
    return EngineConfig(
        model=str(folder),
        device=DeviceChoice.CPU,
        dtype=DtypeChoice.FLOAT32,
        max_num_seqs=6,
        max_num_batched_tokens=24,
        max_queued_requests=10,
        kv_cache_tokens=256,
        block_size=4,
    )


def make_requests(rng):
    for number in range(NUM_REQUESTS):
        sampling = SamplingParams(
            max_tokens=rng.randint(1, 50),
            end_ids=frozenset(rng.sample(range(VOCAB_SIZE), 1)),
            temperature=rng.choice([0.0, 0.7, 1.5]),
            top_k=rng.choice([0, 5, 40]),
            top_p=rng.choice([0.7, 1.0]),
            repetition_penalty=rng.choice([1.0, 1.3]),
            frequency_penalty=rng.choice([0.0, 0.5]),
            min_tokens=rng.choice([0, 3]),
            num_logprobs=rng.choice([None, 0, 4]),
            prompt_logprobs=rng.random() < 0.2,
            seed=number,
        )
        prompt = tuple(rng.choices(range(VOCAB_SIZE), k=rng.randint(1, 70)))
        yield Request(request_id=RequestId(f"r{number}"), prompt_token_ids=prompt, sampling=sampling)


def answer_alone(engine, request):
    assert not engine.submit([request])
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


async def ask(client, request, *, give_up_after):
    """Tokens and reason; None if we hung up."""
    while True:
        try:
            stream = await client.submit([request])
            break
        except QueueFullError:
            await asyncio.sleep(0.005)
    tokens, entries, prompt_entries = [], [], []
    try:
        async for output in stream:
            assert output.error is None
            tokens += output.token_ids
            entries += output.logprobs
            prompt_entries += output.prompt_logprobs
            if give_up_after is not None and len(tokens) >= give_up_after:
                return None
    finally:
        await stream.aclose()
    wants_entries = request.sampling.num_logprobs is not None
    assert [entry.token_id for entry in entries] == (tokens if wants_entries else [])
    assert len(prompt_entries) == (len(request.prompt_token_ids) if request.sampling.prompt_logprobs else 0)
    return tokens, output.finish_reason


async def test_everybody_is_answered_as_if_alone(config):
    rng = random.Random(11)
    requests = list(make_requests(rng))
    reference, _ = build_engine(config)
    expected = {request.request_id: answer_alone(reference, request) for request in requests}
    assert {reason for _, reason in expected.values()} == {FinishReason.STOP, FinishReason.LENGTH}

    client = await start_engine_in_thread(config, build_engine)
    async with asyncio.timeout(DEADLINE_S):
        await client.wait_ready()
        quitters = {request.request_id: rng.randint(0, 10) for request in rng.sample(requests, 16)}
        answers = await asyncio.gather(
            *(ask(client, request, give_up_after=quitters.get(request.request_id)) for request in requests)
        )
        while client.stats.num_free_blocks < client.stats.num_blocks:  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.005)
    for request, answer in zip(requests, answers, strict=True):
        assert answer is None or answer == expected[request.request_id]
    assert client.stats.num_preemptions > 0
    assert (client.stats.num_running, client.stats.num_waiting) == (0, 0)
    await client.aclose()
