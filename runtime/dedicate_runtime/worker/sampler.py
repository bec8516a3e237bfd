"""From logits to tokens, all rows of a step at once.

A row's draw is u = hash(seed, output position), mapped into (0, 1) and looked up in the cumulative probabilities of its
candidates in descending (logit, then ascending id) order. Neither the batch, nor a row's place in it, nor what was
drawn before enters: the same request gives the same tokens in any company and after any preemption.

Filters apply in the order of transformers' `generate()`: penalties, temperature, top-k, top-p, min-p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.worker.logits import adjust_logits, rank_candidates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledRow

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: dividing by less would overflow."""

_OPEN_WIDTH = 256
"""Candidates that are ranked first for rows without top-k; arbitrary. A nucleus that is wider is ranked in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """One token for each row; meaningless where `is_broken`."""

    token_ids: list[int]
    is_broken: list[bool]


def sample(logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> SampledTokens:
    """Chooses a token for each row.

    logits: (num_rows, vocab_size) float32; changed in place where a row has penalties, biases or masked ids. A row is
    broken if its logits hold a NaN or no finite maximum.
    """
    adjust_logits(logits, rows)
    is_broken = ~torch.isfinite(logits.amax(dim=-1))
    filters = _Filters.build(rows, vocab_size=logits.shape[-1], device=logits.device)
    chosen, is_open = _choose(logits, filters, width=filters.ranked_width)
    is_open &= ~is_broken
    if is_open.any():
        wide = is_open.nonzero()[:, 0]
        chosen[wide], _ = _choose(logits[wide], filters.select(wide), width=logits.shape[-1])
    return SampledTokens(token_ids=chosen.tolist(), is_broken=is_broken.tolist())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filters:
    """Sampling parameters as columns: (num_rows, 1) each, float64 but for `top_k`."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """The vocabulary's size where top-k is off, 1 where the row is greedy."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    draw: torch.Tensor
    ranked_width: int

    @classmethod
    def build(cls, rows: Sequence[ScheduledRow], *, vocab_size: int, device: torch.device) -> _Filters:
        is_greedy = [row.sampling.temperature < GREEDY_BELOW for row in rows]
        top_k = [
            1 if greedy else min(row.sampling.top_k or vocab_size, vocab_size)
            for row, greedy in zip(rows, is_greedy, strict=True)
        ]
        temperature = [1.0 if greedy else row.sampling.temperature for row, greedy in zip(rows, is_greedy, strict=True)]
        seeds = [row.sampling.seed for row in rows]

        def column(values: Sequence[float] | NDArray[np.float64]) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float64), device=device)[:, None]

        return cls(
            temperature=column(temperature),
            top_k=torch.tensor(top_k, device=device)[:, None],
            top_p=column([row.sampling.top_p for row in rows]),
            min_p=column([row.sampling.min_p for row in rows]),
            draw=column(draw_uniform(seeds, [row.output_position for row in rows])),
            ranked_width=max(min(width, _OPEN_WIDTH) if width == vocab_size else width for width in top_k),
        )

    def select(self, indices: torch.Tensor) -> _Filters:
        return _Filters(
            temperature=self.temperature[indices],
            top_k=self.top_k[indices],
            top_p=self.top_p[indices],
            min_p=self.min_p[indices],
            draw=self.draw[indices],
            ranked_width=self.ranked_width,
        )


def _choose(logits: torch.Tensor, filters: _Filters, *, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws from the best `width` candidates of each row.

    Returns the token ids, (num_rows,) int64, and where more candidates are needed to tell, (num_rows,) bool.
    """
    vocab_size = logits.shape[-1]
    ids, candidate_logits = rank_candidates(logits, width)
    width = ids.shape[-1]
    best = candidate_logits[:, :1].double()
    weights = torch.exp((candidate_logits.double() - best) / filters.temperature)
    weights.masked_fill_(torch.arange(width, device=ids.device) >= filters.top_k, 0.0)
    has_more = (filters.top_k > width)[:, 0]
    totals = weights.sum(dim=-1, keepdim=True)
    if has_more.any():
        # In float32 over the whole row: summed once, in the same order for every width.
        scaled = (logits[has_more] - best[has_more].float()) / filters.temperature[has_more].float()
        totals[has_more] = scaled.exp().sum(dim=-1, keepdim=True).double()
    elif width == vocab_size:
        scaled = (logits - best.float()) / filters.temperature.float()
        totals = torch.where(filters.top_k == vocab_size, scaled.exp().sum(dim=-1, keepdim=True).double(), totals)
    probabilities = weights / totals
    cumulative = probabilities.cumsum(dim=-1)
    is_kept = (cumulative - probabilities < filters.top_p) & (weights >= filters.min_p) & (weights > 0)
    is_kept[:, 0] = True
    num_kept = is_kept.sum(dim=-1, keepdim=True)
    mass = cumulative.gather(-1, num_kept - 1)
    reaches_end = has_more & is_kept[:, -1]
    takes_all = ((filters.top_p >= 1.0) & (filters.min_p <= 0.0))[:, 0]
    target = filters.draw * torch.where((reaches_end & takes_all)[:, None], 1.0, mass)
    rank = torch.minimum((cumulative < target).sum(dim=-1, keepdim=True), num_kept - 1)
    is_open = reaches_end & (~takes_all | (target > cumulative[:, -1:])[:, 0])
    return ids.gather(-1, rank)[:, 0], is_open


def draw_uniform(seeds: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in (0, 1) for each pair: the top 32 bits of a hash, plus one half, over 2^32."""
    mask = (1 << 64) - 1
    state = np.array([seed & mask for seed in seeds], dtype=np.uint64)
    state = _mix(_mix(state) + np.array(positions, dtype=np.uint64))
    return ((state >> np.uint64(32)).astype(np.float64) + 0.5) / 2.0**32


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The step and finaliser of splitmix64. Source: https://prng.di.unimi.it/splitmix64.c."""
    state = state + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
