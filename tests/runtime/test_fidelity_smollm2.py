"""The small real model: its greedy tokens are those of `generate()`, on 20 prompts of many kinds and lengths."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoTokenizer

from dedicate_runtime.core.config import AttentionChoice
from dedicate_runtime.core.request import FinishReason
from dedicate_runtime.engine.build import build_engine
from dev.model.api import ensure_model
from tests.runtime.fidelity import (
    CLEAR_LEAD,
    NUM_NEW_TOKENS,
    generate,
    load_reference,
    make_config,
    make_request,
    make_requests,
    run,
)

TEXTS = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox jumps over the lazy dog. " * 8 + "The quick",
    "I",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, age FROM people WHERE",
    "Question: What is the largest planet of the solar system?\nAnswer:",
    "Die Hauptstadt von Deutschland ist",
    "<html>\n<head>\n<title>Welcome</title>",
    "To bake a simple loaf of bread you need flour, water, salt and yeast. First,",
    "The three laws of thermodynamics state that",
    "| planet | moons |\n|---|---|\n| Mars | 2 |\n| Jupiter |",
    "In 1969, the first humans landed on the Moon. The mission was called",
    "She opened the letter slowly. Inside there was only one sentence:",
    "import numpy as np\n\n\ndef softmax(x):\n",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "The history of the printing press begins in the fifteenth century. Before it, books were copied by hand, which "
    "took months and made each of them a treasure that few could afford. " * 3 + "After it,",
)
REPEATED = 32
"""Tokens of an answer that come back as part of the next prompt, as in a chat."""


@pytest.fixture(scope="module")
def folder():
    return ensure_model()


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {f"text-{index}": tokenizer.encode(text) for index, text in enumerate(TEXTS)}


@pytest.fixture(scope="module")
def expected(folder, prompts):
    answers = dict(zip(prompts, generate(load_reference(folder), list(prompts.values())), strict=True))
    hesitant = {name: answer.lead for name, answer in answers.items() if answer.lead < CLEAR_LEAD}
    assert not hesitant, "generate() itself hesitates over these texts: they prove nothing"
    return {name: answer.token_ids for name, answer in answers.items()}


@pytest.fixture(scope="module")
def build(folder):
    def build_with(**fields):
        return build_engine(make_config(folder, **{"max_num_seqs": 16, **fields}))[0]

    return build_with


@pytest.fixture(scope="module")
def engine(build):
    return build()


def test_alone(engine, prompts, expected):
    for name in ("text-0", "text-5", "text-6"):
        assert run(engine, [make_request(name, prompts[name])]) == {name: expected[name]}


@pytest.mark.parametrize("backend", [AttentionChoice.AUTO, AttentionChoice.TORCH])
def test_beside_sampled_ones(build, prompts, expected, backend):
    engine = build(attention_backend=backend)
    others = [make_request(f"other-{i}", prompt, seed=i, temperature=1.0) for i, prompt in enumerate(prompts.values())]
    requests = make_requests(prompts)
    tokens = run(engine, [*requests[:10], *others[:6], *requests[10:]], stagger=1)
    assert {name: tokens[name] for name in expected} == expected


def test_after_prefix_hits(build, prompts, expected):
    engine = build()
    assert run(engine, make_requests(prompts)) == expected
    num_hits = engine.stats.num_prefix_hit_tokens
    followed = {name: [*prompt, *expected[name][:REPEATED]] for name, prompt in prompts.items()}
    tokens = run(engine, make_requests(followed, max_tokens=NUM_NEW_TOKENS - REPEATED))
    assert tokens == {name: answer[REPEATED:] for name, answer in expected.items()}
    assert engine.stats.num_prefix_hit_tokens - num_hits > 20 * 16


def test_with_prompts_in_chunks_and_after_preemption(build, prompts, expected):
    engine = build(max_num_seqs=8, max_num_batched_tokens=19, kv_cache_tokens=512)
    assert run(engine, make_requests(prompts)) == expected
    assert engine.stats.num_preemptions > 0


def test_repetition_penalty_is_that_of_generate(folder, engine, prompts):
    prompt = prompts["text-4"]
    (answer,) = generate(load_reference(folder), [prompt], repetition_penalty=1.3)
    request = make_request("penalised", prompt, repetition_penalty=1.3)
    assert run(engine, [request])["penalised"] == answer.token_ids


def test_logprobs_are_those_of_one_forward(folder, engine, prompts):
    prompt = prompts["text-3"]
    request = make_request(
        "scored", prompt, num_logprobs=3, prompt_logprobs=True, max_tokens=4, temperature=0.7, seed=1
    )
    engine.submit([request])
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    tokens = [token_id for output in outputs for token_id in output.token_ids]
    entries = [*outputs[0].prompt_logprobs[1:], *(entry for output in outputs for entry in output.logprobs)]
    assert outputs[0].prompt_logprobs[0] is None
    assert outputs[-1].finish_reason is FinishReason.LENGTH

    model = load_reference(folder)
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
    names = [f"text-{index}" for index in range(6)]
    tokens = {name: [] for name in names}
    assert not engine.submit([make_request(name, prompts[name], max_tokens=20) for name in names])
    while engine.has_work:
        for output in engine.step():
            tokens[output.request_id] += output.token_ids
            if output.request_id == "text-2" and len(tokens["text-2"]) == 3:
                engine.abort(["text-2"])
        engine.check_integrity()
    assert engine.stats.num_free_blocks == engine.stats.num_blocks
    assert tokens == {name: expected[name][: 3 if name == "text-2" else 20] for name in names}
