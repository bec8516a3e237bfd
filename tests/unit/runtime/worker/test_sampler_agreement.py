"""The native sampler draws the tokens of the torch one, unless a draw is at the border of two tokens."""

from __future__ import annotations

import functools

import hypothesis.strategies as st
import numpy as np
import torch
from hypothesis import given, settings

from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.logits import adjust_logits
from dedicate_runtime.worker.native.library import Pool, load_kernels
from dedicate_runtime.worker.native.sampling import NativeSampler
from dedicate_runtime.worker.sampler import TorchSampler
from dedicate_runtime.worker.sampling_adjustments import AdjustmentBook
from tests.unit.runtime.worker.sampling_reference import is_at_border

TORCH = TorchSampler()


@functools.cache
def native_sampler():
    return NativeSampler(Pool(load_kernels(), num_threads=2))


@st.composite
def logits_of(draw, vocab_size):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 1e-6, 0.01, 1.0, 3.0, 10.0]))
    logits = torch.randn(vocab_size, generator=generator) * spread + draw(st.sampled_from([0.0, -20.0, 300.0]))
    form = draw(st.sampled_from(["smooth", "bfloat16", "levels", "two hills", "outliers", "few"]))
    if form == "bfloat16":
        return logits.bfloat16().float()
    if form == "levels":
        return torch.randint(0, 4, (vocab_size,), generator=generator).float()
    if form == "two hills":
        logits[: vocab_size // 3] += 15.0
    if form == "outliers":
        logits[:: max(vocab_size // 5, 1)] = draw(st.sampled_from([-1e30, -torch.inf, 25.0, 1e30]))
    if form == "few":
        logits[min(vocab_size, 5) :] = -torch.inf
    return logits


@st.composite
def samplings(draw, vocab_size):
    ids = st.integers(0, vocab_size - 1)
    return SamplingParams(
        max_tokens=100,
        end_ids=draw(st.frozensets(ids, max_size=3)),
        temperature=draw(st.sampled_from([0.0, 1e-4, 0.1, 0.7, 1.0, 2.0])),
        top_p=draw(st.sampled_from([0.0, 1e-6, 0.3, 0.7, 0.95, 0.9999, 1.0])),
        top_k=draw(st.sampled_from([0, 0, 1, 2, 40, 511, 512, 513, 3000])),
        min_p=draw(st.sampled_from([0.0, 0.0, 1e-4, 0.1, 1.0])),
        repetition_penalty=draw(st.sampled_from([1.0, 1.0, 0.8, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, 0.0, 0.7, -2.0])),
        frequency_penalty=draw(st.sampled_from([0.0, 0.0, 0.3])),
        logit_bias=draw(st.dictionaries(ids, st.sampled_from([-100.0, -1.5, 2.0, 100.0]), max_size=5)),
        seed=draw(st.integers(-(2**63), 2**64 - 1)),
        min_tokens=draw(st.sampled_from([0, 0, 5])),
        num_logprobs=draw(st.sampled_from([None, 0, 1, 5])),
    )


@st.composite
def steps(draw):
    """Logits and the rows that they are for."""
    vocab_size = draw(st.sampled_from([1, 2, 15, 64, 511, 1000, 1537, 5000, 12_345]))
    num_rows = draw(st.integers(1, 6))
    rows = []
    for index in range(num_rows):
        sampling = draw(samplings(vocab_size))
        tokens = tuple(draw(st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12)))
        split = draw(st.integers(1, len(tokens)))
        history = TokenHistory(prompt_token_ids=tokens[:split], output_token_ids=tokens[split:])
        rows.append(
            ScheduledRow(
                request_id=RequestId(str(index)),
                token_ids=tokens[-1:],
                start=len(tokens) - 1,
                block_table=(1,),
                sampling=sampling,
                is_sampled=True,
                output_position=len(tokens) - split,
                history=history if sampling.has_penalties else None,
            )
        )
    return torch.stack([draw(logits_of(vocab_size)) for _ in rows]), rows


@settings(max_examples=400, deadline=None)
@given(steps())
def test_native_and_torch_agree(step):
    logits, rows = step
    given_logits = logits.clone()
    native = native_sampler().sample(logits, rows)
    assert torch.equal(logits, given_logits)
    expected = TORCH.sample(logits.clone(), rows)
    adjust_logits(logits, rows, AdjustmentBook().update(rows))
    assert native.is_broken == expected.is_broken
    for index, row in enumerate(rows):
        if expected.is_broken[index]:
            continue
        if native.token_ids[index] != expected.token_ids[index]:
            assert row.sampling.temperature >= 1e-5
            assert is_at_border(logits[index].numpy(), row, native.token_ids[index])
        elif row.sampling.num_logprobs is not None:
            assert_same_logprobs(native.logprobs[index], expected.logprobs[index])


def assert_same_logprobs(entry, expected):
    finite = [(token_id, logprob) for token_id, logprob in expected.top if logprob != -np.inf]
    assert [token_id for token_id, _ in entry.top] == [token_id for token_id, _ in finite]
    np.testing.assert_allclose(
        [logprob for _, logprob in entry.top], [logprob for _, logprob in finite], rtol=1e-6, atol=2e-6
    )
    assert (entry.token_id, dict(entry.top)[entry.token_id]) == (expected.token_id, entry.logprob)
