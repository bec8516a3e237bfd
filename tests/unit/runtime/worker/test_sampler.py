"""Every sampler against what it promises, row by row and in any company."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from dedicate_runtime.core.batch import TokenHistory
from dedicate_runtime.worker.native.library import Pool, load_kernels, usable_instruction_sets
from dedicate_runtime.worker.native.sampling import NativeSampler
from dedicate_runtime.worker.sampler import TorchSampler, draw_uniform
from tests.unit.runtime.worker.sampling_reference import make_row, rank_kept

VOCAB_SIZE = 1000


@pytest.fixture(scope="module", params=["torch", *(one.name for one in usable_instruction_sets())])
def sampler(request):
    if request.param == "torch":
        return TorchSampler()
    return NativeSampler(Pool(load_kernels(request.param), num_threads=2))


def make_logits(num_rows, *, seed=0, vocab_size=VOCAB_SIZE, spread=3.0):
    return torch.randn(num_rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def sample_reference(logits, row):
    if row.sampling.temperature < 1e-5:
        return int(np.argmax(logits))
    ids, weights = rank_kept(logits, row.sampling)
    cumulative = np.cumsum(weights)
    (draw,) = draw_uniform([row.sampling.seed], [row.output_position])
    return int(ids[np.searchsorted(cumulative, draw * cumulative[-1])])


MIXED = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_p": 0.7, "top_k": 40},
    {"temperature": 1.5, "top_k": 0, "top_p": 1.0},
    {"temperature": 1.0, "top_k": 0, "top_p": 0.9},
    {"temperature": 2.0, "top_k": 500, "top_p": 0.99},
    {"temperature": 2.0, "top_k": 600, "top_p": 0.99},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.99, "min_p": 0.001},
    {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.05},
    {"temperature": 0.9, "top_k": 1},
    {"temperature": 1.0, "top_p": 0.0, "top_k": 40},
    {"temperature": 1.0, "top_k": 5000, "top_p": 1.0},
    {"temperature": 1e-4, "top_k": 0, "top_p": 1.0},
]


@pytest.mark.parametrize("seed", range(12))
def test_tokens_are_those_of_the_definition(sampler, seed):
    rows = [make_row(seed=seed, position=3 * i, **sampling) for i, sampling in enumerate(MIXED)]
    logits = make_logits(len(rows), seed=seed)
    expected = [sample_reference(row_logits.numpy(), row) for row_logits, row in zip(logits, rows, strict=True)]
    assert sampler.sample(logits.clone(), rows).token_ids == expected


def test_company_and_place_do_not_matter(sampler):
    rows = [make_row(seed=i, position=i, **MIXED[i % len(MIXED)]) for i in range(36)]
    logits = make_logits(len(rows), seed=99)
    together = sampler.sample(logits.clone(), rows).token_ids
    alone = [sampler.sample(logits[i : i + 1].clone(), [row]).token_ids[0] for i, row in enumerate(rows)]
    backwards = sampler.sample(logits.flip(0).clone(), rows[::-1]).token_ids[::-1]
    assert together == alone == backwards


def test_equal_logits_are_ranked_by_id(sampler):
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[0, ::2] = -0.0
    logits[1, 700:] = 1.0
    greedy = [make_row(temperature=0.0), make_row(temperature=0.0)]
    assert sampler.sample(logits.clone(), greedy).token_ids == [0, 700]
    drawn = {sampler.sample(logits[:1].clone(), [make_row(seed=s, top_k=3)]).token_ids[0] for s in range(60)}
    assert drawn == {0, 1, 2}


@pytest.mark.parametrize(("top_p", "allowed"), [(1e-9, 1), (0.25, 2), (0.2500001, 3), (0.5, 4), (0.75, 6), (1.0, 8)])
@pytest.mark.parametrize("top_k", [0, 8, 100])
def test_a_nucleus_ends_with_the_token_that_fills_it(sampler, top_p, allowed, top_k):
    logits = torch.full((200, VOCAB_SIZE), -torch.inf)
    logits[:, 10:18] = 2.5
    rows = [make_row(seed=seed, top_p=top_p, top_k=top_k) for seed in range(200)]
    assert set(sampler.sample(logits, rows).token_ids) == set(range(10, 10 + allowed))


@pytest.mark.parametrize("vocab_size", [1, 7, 16, 33, 500, 513, 3073, 50_001])
def test_any_size_of_vocabulary(sampler, vocab_size):
    rows = [make_row(seed=i, **sampling) for i, sampling in enumerate(MIXED)]
    logits = make_logits(len(rows), seed=vocab_size, vocab_size=vocab_size)
    logits[:, -1] = 9.0
    expected = [sample_reference(row_logits.numpy(), row) for row_logits, row in zip(logits, rows, strict=True)]
    assert sampler.sample(logits, rows).token_ids == expected


def chi_square_limit(degrees):
    """Exceeded once in a million. Source: E. Wilson, M. Hilferty, The distribution of chi-square, 1931."""
    return degrees * (1 - 2 / (9 * degrees) + 4.75 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("sampling", MIXED[1:8], ids=str)
@pytest.mark.parametrize("vocab_size", [12, 2000])
def test_draws_follow_the_distribution(sampler, sampling, vocab_size):
    num_draws = 3000
    logits = make_logits(1, seed=5, vocab_size=vocab_size, spread=2.0)
    rows = [make_row(seed=seed, position=seed % 7, **sampling) for seed in range(num_draws)]
    ids, weights = rank_kept(logits[0].numpy(), rows[0].sampling)
    drawn = Counter(sampler.sample(logits.repeat(num_draws, 1), rows).token_ids)
    assert set(drawn) <= set(ids.tolist())
    expected = weights / weights.sum() * num_draws
    observed = np.array([drawn[token_id] for token_id in ids.tolist()], dtype=np.float64)
    # Rare tokens share cells of five and more.
    cells = np.minimum(np.floor(np.cumsum(expected) / 5.0), np.floor(expected.sum() / 5.0) - 1).astype(int)
    expected, observed = (np.bincount(cells, values) for values in (expected, observed))
    expected, observed = expected[expected > 0], observed[expected > 0]
    if len(expected) > 1:
        assert ((observed - expected) ** 2 / expected).sum() < chi_square_limit(len(expected) - 1)


@pytest.mark.parametrize("sampling", [one for one in MIXED if one["temperature"] >= 0.1], ids=str)
def test_filters_are_those_of_transformers(sampler, sampling):
    logits = make_logits(1, seed=8)
    params = make_row(**sampling).sampling
    scores = TemperatureLogitsWarper(params.temperature)(None, logits)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(None, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(None, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(None, scores)
    kept = torch.isfinite(scores[0]).nonzero()[:, 0].tolist()
    ids, weights = rank_kept(logits[0].numpy(), params)
    assert sorted(ids.tolist()) == kept
    assert weights / weights.sum() == pytest.approx(scores.softmax(-1)[0, ids].numpy(), rel=1e-4, abs=1e-7)
    rows = [make_row(seed=seed, **sampling) for seed in range(50)]
    assert set(sampler.sample(logits.repeat(50, 1), rows).token_ids) <= set(kept)


def test_uniform_draws_are_open_even_and_known():
    draws = draw_uniform(list(range(2000)), [5] * 2000)
    assert ((draws > 0) & (draws < 1)).all()
    assert np.histogram(draws, bins=10, range=(0, 1))[0].min() > 150
    consecutive = draw_uniform([2] * 2000, list(range(2000)))
    assert abs(np.corrcoef(consecutive[:-1], consecutive[1:])[0, 1]) < 0.08
    # Fixed for ever: a client that keeps its seed keeps its text.
    assert draw_uniform([2, -1, 2**70], [0, 1, 2]) == pytest.approx(KNOWN_DRAWS, abs=1e-9)


KNOWN_DRAWS = [0.3922164625255391, 0.4077623769408092, 0.5098789996700361]


def test_draws_are_the_known_ones(sampler):
    """Ten thousand equal tokens: the one that is drawn tells the first four digits of the draw."""
    rows = [make_row(seed=seed, position=position) for position, seed in enumerate([2, -1, 2**70])]
    tokens = sampler.sample(torch.zeros(3, 10_000), rows).token_ids
    assert tokens == [int(draw * 10_000) for draw in KNOWN_DRAWS]


@pytest.mark.parametrize("sampling", MIXED, ids=str)
def test_broken_rows_are_told_apart_and_harm_no_other(sampler, sampling):
    logits = make_logits(6)
    rows = [make_row(seed=i, num_logprobs=2, **sampling) for i in range(6)]
    healthy = sampler.sample(logits.clone(), rows)
    logits[1, 17] = torch.nan
    logits[2] = -torch.inf
    logits[3, 5] = torch.inf
    logits[4, 0] = -torch.inf
    result = sampler.sample(logits, rows)
    assert result.is_broken == [False, True, True, True, False, False]
    for index in (0, 5):
        assert result.token_ids[index] == healthy.token_ids[index]
        assert result.logprobs[index] == healthy.logprobs[index]


def test_end_tokens_are_out_of_reach_before_min_tokens(sampler):
    logits = torch.zeros(2, VOCAB_SIZE)
    logits[:, 7] = 10.0
    logits[:, 8] = 5.0
    sampling = {"temperature": 0.0, "min_tokens": 3, "end_ids": frozenset({7})}
    rows = [make_row(position=2, **sampling), make_row(position=3, **sampling)]
    assert sampler.sample(logits, rows).token_ids == [8, 7]


def test_a_ban_holds_against_any_bias_and_draw(sampler):
    logits = torch.zeros(300, 4)
    sampling = {"min_tokens": 5, "end_ids": frozenset({1, 3}), "logit_bias": {1: 100.0}}
    rows = [make_row(seed=seed, position=4, **sampling) for seed in range(300)]
    assert set(sampler.sample(logits, rows).token_ids) == {0, 2}


def test_all_tokens_banned_is_a_broken_row(sampler):
    rows = [make_row(min_tokens=1, end_ids=frozenset({0, 1})), make_row()]
    assert sampler.sample(torch.zeros(2, 2), rows).is_broken == [True, False]


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.9}, {}], ids=str)
def test_a_bias_of_100_decides(sampler, sampling):
    logits = make_logits(64, seed=3)
    best = logits.argmax(-1).tolist()
    forced = [make_row(seed=i, logit_bias={123: 100.0}, **sampling) for i in range(64)]
    assert sampler.sample(logits.clone(), forced).token_ids == [123] * 64
    banned = [make_row(seed=i, logit_bias={best[i]: -100.0}, **sampling) for i in range(64)]
    assert all(token != best[i] for i, token in enumerate(sampler.sample(logits, banned).token_ids))


def test_bias_and_penalties_change_their_row_alone(sampler):
    logits = torch.zeros(6, VOCAB_SIZE)
    logits[:, 3] = 2.0
    logits[:, 4] = 1.9
    history = TokenHistory(prompt_token_ids=(3,), output_token_ids=(4, 4))
    rows = [
        make_row(temperature=0.0),
        make_row(temperature=0.0, logit_bias={9: 5.0, 3: -100.0}),
        make_row(temperature=0.0, repetition_penalty=1.1, history=history),
        make_row(temperature=0.0, frequency_penalty=-0.1, history=history),
        make_row(temperature=0.0, presence_penalty=-0.5, history=history),
        make_row(temperature=0.0),
    ]
    assert sampler.sample(logits, rows).token_ids == [3, 9, 3, 4, 4, 3]


def test_logprobs_are_those_of_the_logits_as_given(sampler):
    logits = make_logits(4, seed=11)
    expected = logits.double().log_softmax(-1)
    rows = [
        make_row(seed=1, num_logprobs=3, temperature=0.5, logit_bias={10: 100.0}),
        make_row(seed=2),
        make_row(seed=3, num_logprobs=0, top_k=40),
        make_row(seed=4, num_logprobs=20, temperature=0.0),
    ]
    result = sampler.sample(logits.clone(), rows)
    assert result.token_ids[0] == 10
    assert result.logprobs[1] is None
    for index, count in ((0, 3), (2, 0), (3, 20)):
        entry = result.logprobs[index]
        best = expected[index].topk(max(count, 1)).indices.tolist()[:count]
        chosen = [] if entry.token_id in best else [entry.token_id]
        assert entry.token_id == result.token_ids[index]
        assert [token_id for token_id, _ in entry.top] == best + chosen
        for token_id, logprob in entry.top:
            assert logprob == pytest.approx(expected[index, token_id].item(), abs=1e-6)


def test_logprobs_of_prompt_tokens(sampler):
    logits = make_logits(130, vocab_size=500)
    chosen = [(7 * row) % 500 for row in range(130)]
    counts = [row % 4 for row in range(130)]
    before = logits.clone()
    expected = logits.double().log_softmax(-1)
    for row, entry in enumerate(sampler.compute_logprobs(logits, chosen, counts)):
        assert entry.token_id == chosen[row]
        assert entry.logprob == pytest.approx(expected[row, chosen[row]].item(), abs=1e-6)
        assert dict(entry.top)[chosen[row]] == entry.logprob
        assert len(entry.top) in {counts[row], counts[row] + 1}
        assert list(entry.top) == sorted(entry.top, key=lambda pair: (-pair[1], pair[0]))
    assert torch.equal(logits, before)
