"""The sampler against what it promises, row by row and in any company."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.sampler import draw_uniform, sample

VOCAB_SIZE = 1000


def make_row(*, position=0, history=None, **sampling):
    fields = {"max_tokens": 16, "end_ids": frozenset(), "temperature": 1.0, "top_p": 1.0, "top_k": 0, **sampling}
    return ScheduledRow(
        request_id=RequestId("r"),
        token_ids=(1,),
        start=0,
        block_table=(1,),
        sampling=SamplingParams(**fields),
        is_sampled=True,
        output_position=position,
        history=history,
    )


def make_logits(num_rows, *, seed=0, vocab_size=VOCAB_SIZE, spread=3.0):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def sample_reference(logits, row):
    """One row by the book: full sort, float64, no shortcuts."""
    sampling = row.sampling
    order = np.lexsort((np.arange(len(logits)), -logits))
    ranked = logits[order].astype(np.float64)
    if sampling.temperature < 1e-5:
        return int(order[0])
    weights = np.exp((ranked - ranked[0]) / sampling.temperature)
    if sampling.top_k:
        weights[sampling.top_k :] = 0.0
    probabilities = weights / weights.sum()
    before = np.cumsum(probabilities) - probabilities
    is_kept = (before < sampling.top_p) & (weights >= sampling.min_p) & (weights > 0)
    is_kept[0] = True
    cumulative = np.cumsum(np.where(is_kept, probabilities, 0.0))
    (draw,) = draw_uniform([sampling.seed], [row.output_position])
    return int(order[np.searchsorted(cumulative, draw * cumulative[-1])])


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.7, "top_k": 40},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 500, "top_p": 0.99},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_k": 1},
    {"temperature": 1.0, "top_p": 0.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 5000, "top_p": 1.0},
]


@pytest.mark.parametrize("seed", range(12))
def test_tokens_are_those_of_the_definition(seed):
    rows = [make_row(seed=seed, position=3 * i, **sampling) for i, sampling in enumerate(MIXED)]
    logits = make_logits(len(rows), seed=seed)
    expected = [sample_reference(row_logits.numpy(), row) for row_logits, row in zip(logits, rows, strict=True)]
    assert sample(logits.clone(), rows).token_ids == expected


def test_company_and_place_do_not_matter():
    rows = [make_row(seed=i, position=i, **MIXED[i % len(MIXED)]) for i in range(36)]
    logits = make_logits(len(rows), seed=99)
    together = sample(logits.clone(), rows).token_ids
    alone = [sample(logits[i : i + 1].clone(), [row]).token_ids[0] for i, row in enumerate(rows)]
    backwards = sample(logits.flip(0).clone(), rows[::-1]).token_ids[::-1]
    assert together == alone == backwards


def test_equal_logits_are_ranked_by_id():
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[1, 700:] = 1.0
    greedy = [make_row(temperature=0.0), make_row(temperature=0.0)]
    assert sample(logits.clone(), greedy).token_ids == [0, 700]
    drawn = {sample(logits[:1].clone(), [make_row(seed=s, top_k=3)]).token_ids[0] for s in range(60)}
    assert drawn == {0, 1, 2}


def test_draws_follow_the_distribution():
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = probabilities.log().repeat(4000, 1)
    rows = [make_row(seed=seed, position=seed % 7) for seed in range(4000)]
    counts = np.bincount(sample(logits, rows).token_ids, minlength=4)
    assert counts / 4000 == pytest.approx(probabilities.numpy(), abs=0.03)


def test_uniform_draws_are_open_even_and_known():
    draws = draw_uniform(list(range(2000)), [5] * 2000)
    assert ((draws > 0) & (draws < 1)).all()
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 150
    consecutive = draw_uniform([2] * 2000, list(range(2000)))
    assert abs(np.corrcoef(consecutive[:-1], consecutive[1:])[0, 1]) < 0.08
    # Fixed for ever: a client that keeps its seed keeps its text.
    assert draw_uniform([2, -1, 2**70], [0, 1, 2]) == pytest.approx(KNOWN_DRAWS, abs=1e-9)


KNOWN_DRAWS = [0.3922164625255391, 0.4077623769408092, 0.5098789996700361]


def test_broken_rows_are_told_apart_and_harm_no_other():
    logits = make_logits(4)
    healthy = sample(logits.clone(), [make_row(seed=i) for i in range(4)]).token_ids
    logits[1, 17] = torch.nan
    logits[2] = -torch.inf
    result = sample(logits, [make_row(seed=i) for i in range(4)])
    assert result.is_broken == [False, True, True, False]
    assert (result.token_ids[0], result.token_ids[3]) == (healthy[0], healthy[3])


def test_end_tokens_are_out_of_reach_before_min_tokens():
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 7] = 10.0
    logits[:, 8] = 5.0
    sampling = {"temperature": 0.0, "min_tokens": 3, "end_ids": frozenset({7})}
    rows = [make_row(position=2, **sampling), make_row(position=3, **sampling)]
    assert sample(logits, rows).token_ids == [8, 7]


def test_bias_and_penalties_change_their_row_alone():
    logits = torch.zeros(5, VOCAB_SIZE)
    logits[:, 3] = 2.0
    logits[:, 4] = 1.9
    history = TokenHistory(prompt_token_ids=(3,), output_token_ids=(4, 4))
    rows = [
        make_row(temperature=0.0),
        make_row(temperature=0.0, logit_bias={9: 5.0, 3: -100.0}),
        make_row(temperature=0.0, repetition_penalty=1.1, history=history),
        make_row(temperature=0.0, frequency_penalty=-0.1, history=history),
        make_row(temperature=0.0, presence_penalty=-0.5, history=history),
    ]
    assert sample(logits.clone(), rows).token_ids == [3, 9, 3, 4, 4]
    changed = logits.clone()
    sample(changed, rows)
    assert changed[2, 3].item() == pytest.approx(2.0 / 1.1)
    assert changed[2, 4].item() == pytest.approx(1.9 / 1.1)
    assert changed[3, 4].item() == pytest.approx(1.9 + 0.2)
    assert changed[4, 4].item() == pytest.approx(1.9 + 0.5)
    assert torch.equal(changed[0], logits[0])


def test_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = make_logits(1)
    seen = torch.tensor([[4, 8, 15, 16, 23, 42]])
    expected = RepetitionPenaltyLogitsProcessor(1.4)(seen, logits.clone())
    history = TokenHistory(prompt_token_ids=(4, 8, 15), output_token_ids=(16, 23, 42))
    changed = logits.clone()
    sample(changed, [make_row(repetition_penalty=1.4, history=history)])
    assert torch.equal(changed, expected)
