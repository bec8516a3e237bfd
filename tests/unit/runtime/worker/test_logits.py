"""Ranking under ties, and log-probabilities that agree with themselves."""

from __future__ import annotations

import pytest
import torch

from dedicate_runtime.worker.logits import compute_logprobs, rank_candidates


@pytest.mark.parametrize("levels", [1, 2, 5, 300])
@pytest.mark.parametrize("count", [1, 3, 40, 200, 999])
def test_candidates_are_the_head_of_a_stable_sort(levels, count):
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(0, levels, (6, 200), generator=generator).float()
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    ranked_ids, ranked_values = rank_candidates(logits, count)
    assert torch.equal(ranked_ids, ids[:, :count])
    assert torch.equal(ranked_values, values[:, :count])


def test_chosen_token_is_among_the_best_with_the_same_number():
    logits = torch.randn(130, 500, generator=torch.Generator().manual_seed(0))
    chosen = [(7 * row) % 500 for row in range(130)]
    counts = [row % 4 for row in range(130)]
    expected = logits.log_softmax(-1)
    for row, entry in enumerate(compute_logprobs(logits, chosen, counts)):
        assert entry.token_id == chosen[row]
        assert entry.logprob == pytest.approx(expected[row, chosen[row]].item(), abs=1e-5)
        assert dict(entry.top)[chosen[row]] == entry.logprob
        assert len(entry.top) in {counts[row], counts[row] + 1}
        assert list(entry.top) == sorted(entry.top, key=lambda pair: (-pair[1], pair[0]))
