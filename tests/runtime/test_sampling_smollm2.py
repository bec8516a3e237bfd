"""The real model's logits: thousands of draws, in which both samplers take the same tokens."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dedicate_runtime.core.batch import TokenHistory
from dedicate_runtime.worker.native.library import Pool, load_kernels, usable_instruction_sets
from dedicate_runtime.worker.native.sampling import NativeSampler
from dedicate_runtime.worker.sampler import TorchSampler
from tests.unit.runtime.worker.sampling_reference import is_at_border, make_row

TEXT = (
    "<|im_start|>user\nWhat is the capital of France, and why is it there?<|im_end|>\n<|im_start|>assistant\n"
    "The capital of France is Paris. It grew around an island in the river Seine, which was easy to defend and to "
    "cross, and by the Middle Ages it was the seat of the kings.<|im_end|>\n"
    "<|im_start|>user\nSay it as a poem.<|im_end|>"
)
FILTERS = [
    {"temperature": 0.7, "top_p": 0.7, "top_k": 40},
    {"temperature": 1.0},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 2.0, "top_p": 0.9},
    {"temperature": 1.5, "top_k": 2000},
    {"temperature": 1.3, "min_p": 0.02},
    {"temperature": 0.0},
]
NUM_SEEDS = 3


@pytest.fixture(scope="module")
def logits(model_folder):
    """(num_tokens, vocab_size) float32: what may follow each token of the text."""
    tokens = AutoTokenizer.from_pretrained(model_folder)(TEXT, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(**tokens).logits[0].float()


@pytest.fixture(scope="module", params=[one.name for one in usable_instruction_sets()])
def native(request):
    return NativeSampler(Pool(load_kernels(request.param), num_threads=2))


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def steps(request, logits):
    """Logits, rows and the tokens that torch takes, for each filter and seed."""
    logits = logits.to(request.param).float()
    made = []
    for sampling in FILTERS:
        for seed in range(NUM_SEEDS):
            rows = [make_row(seed=seed, position=position, **sampling) for position in range(len(logits))]
            made.append((logits, rows, TorchSampler().sample(logits.clone(), rows)))
    return made


def test_native_and_torch_take_the_same_tokens(native, steps):
    for logits, rows, expected in steps:
        drawn = native.sample(logits, rows)
        assert not any(drawn.is_broken)
        for index, row in enumerate(rows):
            if drawn.token_ids[index] != expected.token_ids[index]:
                assert is_at_border(logits[index].numpy(), row, drawn.token_ids[index])


def test_penalties_and_logprobs_of_a_long_history(logits, native):
    best = logits[-1].topk(200).indices.tolist()
    history = TokenHistory(prompt_token_ids=tuple(best[::2]), output_token_ids=tuple(best[:60] * 3))
    penalties = {"repetition_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2}
    rows = [make_row(seed=seed, history=history, num_logprobs=5, top_k=40, **penalties) for seed in range(60)]
    last = logits[-1:].repeat(len(rows), 1)
    expected = TorchSampler().sample(last.clone(), rows)
    drawn = native.sample(last, rows)
    assert drawn.token_ids == expected.token_ids
    for entry, other in zip(drawn.logprobs, expected.logprobs, strict=True):
        assert [token_id for token_id, _ in entry.top] == [token_id for token_id, _ in other.top]
        assert [one for _, one in entry.top] == pytest.approx([one for _, one in other.top], abs=1e-5)
