"""The small real model: its tokens are those of `generate()`, and sampled ones depend on the request alone."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.engine.build import build_engine
from dev.model.api import ensure_model

NUM_NEW_TOKENS = 20
TIGHT = {"kv_cache_tokens": 128, "block_size": 4, "max_model_len": 128}
"""A cache that holds the longest sequence and little more."""
TEXTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox jumps over the lazy dog. " * 8 + "The quick",
)


@pytest.fixture(scope="module")
def folder():
    return ensure_model()


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {f"text-{index}": tokenizer.encode(text) for index, text in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def expected(folder, prompts):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = {}
    for name, prompt in prompts.items():
        ids = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
        )
        answers[name] = ids[0, len(prompt) :].tolist()
    return answers


@pytest.fixture(scope="module")
def build(folder):
    def build_with(**fields):
        base = {
            "max_num_seqs": 16,
            "max_num_batched_tokens": 256,
            "max_queued_requests": 32,
            "kv_cache_tokens": 2048,
        }
        config = EngineConfig(model=str(folder), device=DeviceChoice.CPU, dtype=DtypeChoice.AUTO, **{**base, **fields})
        return build_engine(config)[0]

    return build_with


@pytest.fixture(scope="module")
def engine(build):
    return build()


def make_request(name, prompt, **sampling):
    fields = {"max_tokens": NUM_NEW_TOKENS, "end_ids": frozenset(), **sampling}
    return Request(request_id=RequestId(name), prompt_token_ids=tuple(prompt), sampling=SamplingParams(**fields))


def run(engine, requests, *, abort_after=None):
    """Tokens by request id; `abort_after` names one to end after its third token."""
    assert not engine.submit(requests)
    tokens = {request.request_id: [] for request in requests}
    while engine.has_work:
        for output in engine.step():
            assert output.error is None
            tokens[output.request_id] += output.token_ids
            if output.request_id == abort_after and len(tokens[abort_after]) == 3:
                engine.abort([abort_after])
        engine.check_integrity()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    return tokens


def greedy(prompts):
    return [make_request(name, prompt, temperature=0.0) for name, prompt in prompts.items()]


def test_greedy_tokens_alone(engine, prompts, expected):
    for request in greedy(prompts):
        assert run(engine, [request]) == {request.request_id: expected[request.request_id]}


def test_greedy_tokens_beside_sampled_ones(engine, prompts, expected):
    others = [make_request(f"other-{i}", prompt, seed=i) for i, prompt in enumerate(prompts.values())]
    mixed = [request for pair in zip(greedy(prompts), others, strict=True) for request in pair]
    tokens = run(engine, mixed)
    assert {name: tokens[name] for name in expected} == expected


def test_greedy_tokens_with_prompts_in_chunks_and_after_preemption(build, prompts, expected):
    engine = build(max_num_seqs=6, max_num_batched_tokens=11, **TIGHT)
    assert run(engine, greedy(prompts)) == expected
    assert engine.stats.num_preemptions > 0


def test_sampled_tokens_are_the_same_alone_in_company_and_in_any_order(engine, prompts):
    def make_sampled():
        return [
            make_request(f"{name}-{seed}", prompt, seed=seed, temperature=0.9, top_p=0.95)
            for name, prompt in list(prompts.items())[1:4]
            for seed in (2, 3)
        ]

    alone = {}
    for request in make_sampled():
        alone |= run(engine, [request])
    assert alone["text-3-2"] != alone["text-3-3"]
    assert run(engine, make_sampled()) == alone
    shuffled = make_sampled()
    random.Random(5).shuffle(shuffled)
    assert run(engine, shuffled) == alone


def test_sampled_tokens_survive_preemption(build, engine, prompts):
    requests = [
        make_request(name, prompt, seed=7, repetition_penalty=1.2) for name, prompt in list(prompts.items())[:5]
    ]
    tight = build(max_num_seqs=6, max_num_batched_tokens=32, **TIGHT)
    assert run(tight, requests) == run(engine, requests)
    assert tight.stats.num_preemptions > 0


def test_repetition_penalty_is_that_of_generate(folder, engine, prompts):
    prompt = prompts["text-4"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        max_new_tokens=NUM_NEW_TOKENS,
        do_sample=False,
        repetition_penalty=1.3,
    )
    expected = ids[0, len(prompt) :].tolist()
    request = make_request("penalised", prompt, temperature=0.0, repetition_penalty=1.3, max_tokens=len(expected))
    assert run(engine, [request])["penalised"] == expected


def test_logprobs_are_those_of_one_forward(folder, engine, prompts):
    prompt = prompts["text-3"]
    request = make_request("scored", prompt, num_logprobs=3, prompt_logprobs=True, max_tokens=4, seed=1)
    engine.submit([request])
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    tokens = [token_id for output in outputs for token_id in output.token_ids]
    entries = [*outputs[0].prompt_logprobs[1:], *(entry for output in outputs for entry in output.logprobs)]
    assert outputs[0].prompt_logprobs[0] is None
    assert outputs[-1].finish_reason is FinishReason.LENGTH

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    everything = [*prompt, *tokens]
    with torch.inference_mode():
        reference = model(torch.tensor([everything])).logits[0].log_softmax(-1)
    assert [entry.token_id for entry in entries] == everything[1:]
    for position, entry in enumerate(entries):
        assert entry.logprob == pytest.approx(reference[position, entry.token_id].item(), abs=1e-3)
        assert (entry.token_id, entry.logprob) in entry.top
        assert list(entry.top) == sorted(entry.top, key=lambda pair: (-pair[1], pair[0]))
        assert {token_id for token_id, _ in entry.top[:3]} >= {reference[position].argmax().item()}


def test_abort_frees_blocks_and_leaves_the_others_alone(engine, prompts, expected):
    tokens = run(engine, greedy(prompts), abort_after="text-2")
    assert tokens["text-2"] == expected["text-2"][:3]
    del tokens["text-2"]
    assert tokens == {name: answer for name, answer in expected.items() if name != "text-2"}
