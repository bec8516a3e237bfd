"""From logits to tokens, all rows of a step at once: the definition, in torch.

A row's draw is u = hash(seed, output position), mapped into (0, 1) and looked up in the cumulative weights of its
candidates in descending (logit, then ascending id) order. Neither the batch, nor a row's place in it, nor what was
drawn before enters: the same request gives the same tokens in any company and after any preemption.

Filters apply in the order of transformers' `generate()`: penalties, temperature, top-k, top-p, min-p.

Another sampler may round differently, so where a draw falls within 1e-6 of the border between two tokens, as part of
the sum of all weights, it may take the other one; likewise for a token at the border of top-p or min-p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from dedicate_runtime.worker.logits import adjust_logits, compute_logprobs, rank_candidates
from dedicate_runtime.worker.sampling_adjustments import AdjustmentBook

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.core.request import TokenLogprobs

GREEDY_BELOW = 1e-5
"""Temperatures below it are greedy: dividing by less would overflow."""

_OPEN_WIDTHS = (256, 4096)
"""Candidates that are ranked for rows without top-k, until one width is enough to tell; then all. Arbitrary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTokens:
    """One token for each row, and its log-probabilities where the row asks for them; meaningless where `is_broken`."""

    token_ids: list[int]
    is_broken: list[bool]
    logprobs: list[TokenLogprobs | None]


class Sampler(Protocol):
    """Chooses tokens by the rules of this module."""

    def sample(self, logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> SampledTokens:
        """Chooses a token for each row.

        logits: (num_rows, vocab_size) float32; what they are afterwards is not said. A row is broken if its logits,
        with penalties and biases, hold a NaN or no finite maximum. Log-probabilities are those of the logits as given.
        """

    def compute_logprobs(
        self, logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """Log-probabilities of `token_ids[i]` and of the best `counts[i]` tokens in row i.

        logits: (num_rows, vocab_size) float32, left as they are.
        """


class TorchSampler:
    """The sampler for any device."""

    def __init__(self) -> None:
        self._adjustments = AdjustmentBook()

    def sample(self, logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> SampledTokens:
        """As `Sampler` says; adjusts the logits in place."""
        reported = [index for index, row in enumerate(rows) if row.sampling.num_logprobs is not None]
        reported_logits = logits[reported] if reported else None
        adjust_logits(logits, rows, self._adjustments.update(rows))
        is_broken = ~torch.isfinite(logits.amax(dim=-1))
        token_ids = _choose_all(logits, rows, is_broken).tolist()
        logprobs: list[TokenLogprobs | None] = [None] * len(rows)
        if reported_logits is not None:
            chosen = [token_ids[index] for index in reported]
            counts = [rows[index].sampling.num_logprobs or 0 for index in reported]
            for index, entry in zip(reported, compute_logprobs(reported_logits, chosen, counts), strict=True):
                logprobs[index] = entry
        return SampledTokens(token_ids=token_ids, is_broken=is_broken.tolist(), logprobs=logprobs)

    def compute_logprobs(
        self, logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """As `Sampler` says."""
        return compute_logprobs(logits, token_ids, counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Filters:
    """Sampling parameters as columns: (num_rows, 1) each, float64 but for `top_k`."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    """The vocabulary's size where top-k is off."""
    top_p: torch.Tensor
    min_p: torch.Tensor
    draw: torch.Tensor
    ranked_width: int

    @classmethod
    def build(cls, rows: Sequence[ScheduledRow], *, vocab_size: int, device: torch.device) -> _Filters:
        top_k = [min(row.sampling.top_k or vocab_size, vocab_size) for row in rows]
        draws = draw_uniform([row.sampling.seed for row in rows], [row.output_position for row in rows])

        def column(values: Sequence[float] | NDArray[np.float64]) -> torch.Tensor:
            return torch.as_tensor(np.asarray(values, dtype=np.float64), device=device)[:, None]

        return cls(
            temperature=column([row.sampling.temperature for row in rows]),
            top_k=torch.tensor(top_k, device=device)[:, None],
            top_p=column([row.sampling.top_p for row in rows]),
            min_p=column([row.sampling.min_p for row in rows]),
            draw=column(draws),
            ranked_width=max(min(width, _OPEN_WIDTHS[0]) if width == vocab_size else width for width in top_k),
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


def _choose_all(logits: torch.Tensor, rows: Sequence[ScheduledRow], is_broken: torch.Tensor) -> torch.Tensor:
    """(num_rows,) int64: the smallest id of the largest logit in greedy rows, a draw in the others."""
    is_greedy = np.array([row.sampling.temperature < GREEDY_BELOW for row in rows])
    chosen = torch.zeros(len(rows), dtype=torch.int64, device=logits.device)
    greedy, drawn = (torch.from_numpy(flags.nonzero()[0]).to(logits.device) for flags in (is_greedy, ~is_greedy))
    if len(greedy):
        chosen[greedy] = _select(logits, greedy).argmax(dim=-1)
    if not len(drawn):
        return chosen
    vocab_size = logits.shape[-1]
    filters = _Filters.build([rows[index] for index in drawn.tolist()], vocab_size=vocab_size, device=logits.device)
    for width in _widths(filters.ranked_width, vocab_size):
        chosen[drawn], is_open = _choose(_select(logits, drawn), filters, width=width)
        is_open &= ~is_broken[drawn]
        if not is_open.any():
            break
        left = is_open.nonzero()[:, 0]
        drawn, filters = drawn[left], filters.select(left)
    return chosen


def _widths(first: int, vocab_size: int) -> list[int]:
    return [first, *(width for width in _OPEN_WIDTHS if first < width < vocab_size), vocab_size]


def _select(logits: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows at `indices`, ascending; without a copy if they are all."""
    return logits if len(indices) == len(logits) else logits[indices]


def _choose(logits: torch.Tensor, filters: _Filters, *, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws from the best `width` candidates of each row.

    Returns the token ids, (num_rows,) int64, and where more candidates are needed to tell, (num_rows,) bool.
    """
    ids, candidate_logits = rank_candidates(logits, width)
    width = ids.shape[-1]
    best = candidate_logits[:, :1]
    weights = torch.exp((candidate_logits.double() - best.double()) / filters.temperature)
    weights.masked_fill_(torch.arange(width, device=ids.device) >= filters.top_k, 0.0)
    totals = weights.sum(dim=-1, keepdim=True)
    is_unlimited = (filters.top_k == logits.shape[-1])[:, 0]
    if is_unlimited.any():
        # In float32 over the whole row, whatever the width, so that the company's filters do not enter.
        open_logits, open_best, temperature = logits, best, filters.temperature
        if not is_unlimited.all():
            open_logits, open_best = logits[is_unlimited], best[is_unlimited]
            temperature = filters.temperature[is_unlimited]
        scaled = (open_logits - open_best).div_(temperature.float())
        totals[is_unlimited] = scaled.exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
    cumulative = weights.cumsum(dim=-1)
    is_in_nucleus = (cumulative - weights < filters.top_p * totals) | (filters.top_p >= 1.0)
    is_kept = is_in_nucleus & (weights >= filters.min_p) & (weights > 0)
    is_kept[:, 0] = True
    num_kept = is_kept.sum(dim=-1, keepdim=True)
    mass = cumulative.gather(-1, num_kept - 1)
    reaches_end = (filters.top_k > width)[:, 0] & is_kept[:, -1]
    takes_all = ((filters.top_p >= 1.0) & (filters.min_p <= 0.0))[:, 0]
    target = filters.draw * torch.where((reaches_end & takes_all)[:, None], totals, mass)
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
