"""Ranking under ties; penalties, biases and bans by the definitions of those who invented them."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
from dedicate_runtime.core.request import RequestId, SamplingParams
from dedicate_runtime.worker.logits import adjust_logits, rank_candidates
from dedicate_runtime.worker.sampling_adjustments import AdjustmentBook

VOCAB_SIZE = 300


def make_row(*, request_id="r", position=0, history=None, **sampling):
    return ScheduledRow(
        request_id=RequestId(request_id),
        token_ids=(1,),
        start=0,
        block_table=(1,),
        sampling=SamplingParams(**{"max_tokens": 16, "end_ids": frozenset(), **sampling}),
        is_sampled=True,
        output_position=position,
        history=history,
    )


def past(prompt, output):
    return TokenHistory(prompt_token_ids=prompt, output_token_ids=output)


def adjusted(logits, rows, book=None):
    logits = logits.clone()
    adjust_logits(logits, rows, (book or AdjustmentBook()).update(rows))
    return logits


def make_logits(num_rows):
    return torch.randn(num_rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(num_rows)) * 3


@pytest.mark.parametrize("levels", [1, 2, 5, 300])
@pytest.mark.parametrize("count", [1, 3, 40, 200, 999])
def test_candidates_are_the_head_of_a_stable_sort(levels, count):
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(0, levels, (6, 200), generator=generator).float()
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    ranked_ids, ranked_values = rank_candidates(logits, count)
    assert torch.equal(ranked_ids, ids[:, :count])
    assert torch.equal(ranked_values, values[:, :count])


def test_repetition_penalty_is_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = make_logits(2)
    seen = torch.tensor([[4, 8, 15, 16, 23, 42, 4]])
    history = past((4, 8, 15), (16, 23, 42, 4))
    rows = [make_row(repetition_penalty=1.4, history=history), make_row(repetition_penalty=0.6, history=history)]
    expected = [
        RepetitionPenaltyLogitsProcessor(row.sampling.repetition_penalty)(seen, logits[i : i + 1].clone())[0]
        for i, row in enumerate(rows)
    ]
    assert torch.equal(adjusted(logits, rows), torch.stack(expected))


@pytest.mark.parametrize(("presence", "frequency"), [(0.5, 0.0), (0.0, 0.25), (-2.0, 2.0), (1.5, -0.5)])
def test_presence_and_frequency_are_those_of_openai(presence, frequency):
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, where c counts the tokens sampled so far."""
    logits = make_logits(1)
    outputs = (5, 5, 5, 9, 200)
    row = make_row(presence_penalty=presence, frequency_penalty=frequency, history=past((9, 10, 11), outputs))
    expected = logits.clone()
    for token_id, count in Counter(outputs).items():
        expected[0, token_id] -= count * frequency + presence
    torch.testing.assert_close(adjusted(logits, [row]), expected)


def test_each_row_has_its_own_adjustments():
    logits = make_logits(5)
    rows = [
        make_row(request_id="a"),
        make_row(request_id="b", repetition_penalty=1.5, history=past((1, 2), (3,))),
        make_row(request_id="c", logit_bias={7: 2.5, 8: -100.0}),
        make_row(request_id="d", presence_penalty=1.0, history=past((1,), ()), position=0),
        make_row(request_id="e", min_tokens=4, end_ids=frozenset({0, 299}), position=3, logit_bias={0: 50.0, 1: 1.0}),
    ]
    result = adjusted(logits, rows)
    for index, row in enumerate(rows):
        assert torch.equal(result[index], adjusted(logits[index : index + 1], [row])[0])
    assert torch.equal(result[0], logits[0])
    assert torch.equal(result[3], logits[3])
    changed = [(result[index] != logits[index]).nonzero()[:, 0].tolist() for index in (1, 2, 4)]
    assert changed == [[1, 2, 3], [7, 8], [0, 1, 299]]
    assert result[4, [0, 299]].tolist() == [-torch.inf, -torch.inf]


def test_a_ban_covers_what_is_not_a_number():
    logits = make_logits(1)
    logits[0, 7] = torch.nan
    row = make_row(min_tokens=1, end_ids=frozenset({7}))
    assert adjusted(logits, [row])[0, 7] == -torch.inf


def test_lists_that_grow_are_those_made_anew():
    """Over a life with a preemption in it, beside sequences that come and go."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCAB_SIZE, (400,), generator=generator).tolist()
    prompt = tuple(tokens[:50])
    book = AdjustmentBook()
    row = make_row(repetition_penalty=1.2, frequency_penalty=0.1, min_tokens=40, end_ids=frozenset({3}))
    for position in range(300):
        row = replace(row, output_position=position, history=past(prompt, tuple(tokens[50 : 50 + position])))
        other = make_row(request_id=str(position // 10), logit_bias={position: 1.0})
        is_away = position % 90 == 89
        rows = [other] if is_away else [other, row]
        logits = make_logits(len(rows))
        assert torch.equal(adjusted(logits, rows, book), adjusted(logits, rows))


def test_a_request_that_takes_the_name_of_another_starts_anew():
    book = AdjustmentBook()
    logits = make_logits(1)
    old = make_row(repetition_penalty=1.2, history=past((1, 2), (3, 4)))
    new = make_row(repetition_penalty=1.2, history=past((9, 8), (7, 6, 5)))
    adjusted(logits, [old], book)
    assert torch.equal(adjusted(logits, [new], book), adjusted(logits, [new]))
    shorter = replace(new, history=replace(new.history, output_token_ids=(7,)))
    assert torch.equal(adjusted(logits, [shorter], book), adjusted(logits, [shorter]))
