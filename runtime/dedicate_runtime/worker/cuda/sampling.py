"""Sampling in static shapes and without a look at the host, so that a CUDA graph can hold it.

The same tokens as `worker.sampler.sample`, for rows that need nothing but the best `WIDTH` candidates: greedy ones and
those with a top-k of at most that. `is_narrow` tells them; all others are sampled by `worker.sampler`.

The best of a row are found in two rounds, because reading a vocabulary is cheap and ranking it is not: the best groups
of neighbouring ids by their maxima, then the best ids of those groups. Ties go to the lower id in both rounds, by
ranking integers that hold the logit above and the inverted index below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

from dedicate_runtime.worker.sampler import GREEDY_BELOW

if TYPE_CHECKING:
    from dedicate_runtime.core.batch import ScheduledRow

WIDTH = 128
"""Candidates that are ranked; arbitrary: more than the usual top-k of 20 to 100."""

_GROUP = 64
"""Neighbouring ids that share a maximum; arbitrary, near the root of a vocabulary's size over WIDTH."""

_LOW_WORD = 2**32 - 1


def is_narrow(row: ScheduledRow) -> bool:
    """True if the device alone can sample `row`: few candidates, logits as they are, nothing else reported."""
    sampling = row.sampling
    return (
        (sampling.temperature < GREEDY_BELOW or 1 <= sampling.top_k <= WIDTH)
        and row.history is None
        and sampling.num_logprobs is None
        and not sampling.logit_bias
        and not row.prompt_targets
        and (row.output_position >= sampling.min_tokens or not sampling.end_ids)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingColumns:
    """Sampling parameters of a batch: (num_rows,) each, float64 but for `top_k`, int64 and 1 where a row is greedy."""

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    draw: torch.Tensor


def sample_narrow(logits: torch.Tensor, columns: SamplingColumns) -> torch.Tensor:
    """Chooses a token for each row: (num_rows, 2) int64, the id and whether the row is broken, 0 or 1.

    logits: (num_rows, vocab_size), any floating type, unchanged. The id of a broken row is 0: it may be fed.
    """
    ids, candidates = rank_best(logits, WIDTH)
    best = candidates[:, :1].double()
    is_broken = ~torch.isfinite(best)
    weights = torch.exp((candidates.double() - best) / columns.temperature[:, None])
    ranks = torch.arange(ids.shape[-1], device=ids.device)
    weights = torch.where(ranks < columns.top_k[:, None], weights, 0.0)
    probabilities = weights / weights.sum(dim=-1, keepdim=True)
    cumulative = probabilities.cumsum(dim=-1)
    is_kept = cumulative - probabilities < columns.top_p[:, None]
    is_kept = is_kept & (weights >= columns.min_p[:, None]) & (weights > 0) | (ranks == 0)
    last = is_kept.sum(dim=-1, keepdim=True) - 1
    target = columns.draw[:, None] * cumulative.gather(-1, last)
    rank = torch.minimum((cumulative < target).sum(dim=-1, keepdim=True), last)
    chosen = torch.where(is_broken, 0, ids.gather(-1, rank))
    return torch.cat([chosen, is_broken.long()], dim=-1)


def rank_best(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` ids of each row, best first, equal ones by ascending id, and their logits as float32.

    logits: (num_rows, vocab_size); returns (num_rows, min(count, vocab_size)) each. A NaN anywhere in a row is ranked
    first.
    """
    num_rows, vocab_size = logits.shape
    num_groups = -(-vocab_size // _GROUP)
    if num_groups > count:
        num_missing = num_groups * _GROUP - vocab_size
        padded = pad(logits, (0, num_missing), value=-torch.inf) if num_missing else logits
        grouped = padded.view(num_rows, num_groups, _GROUP)
        maxima = grouped.amax(dim=-1)
        groups = torch.topk(_rank_keys(maxima, torch.arange(num_groups, device=logits.device)), count).indices
        ids = groups[:, :, None] * _GROUP + torch.arange(_GROUP, device=logits.device)
        candidates = grouped.gather(1, groups[:, :, None].expand(-1, -1, _GROUP))
        ids, candidates = ids.view(num_rows, -1), candidates.reshape(num_rows, -1)
    else:
        ids = torch.arange(vocab_size, device=logits.device).expand(num_rows, -1)
        candidates = logits
    keys = torch.topk(_rank_keys(candidates, ids), min(count, vocab_size)).values
    best = _LOW_WORD - (keys & _LOW_WORD)
    # A padded id follows every real one, also where logits are minus infinity; it is chosen by nobody.
    best = best.clamp_max(vocab_size - 1)
    return best, logits.gather(-1, best).float()


def _rank_keys(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Integers in the order of (value, then descending index): int64, shaped as `values`. NaN is above all.

    Source: IEEE 754; the bits of floats of one sign are ordered as the floats are.
    """
    # Adding zero makes the negative zero a positive one; a NaN of any sign becomes the positive one.
    values = torch.where(values.isnan(), torch.nan, values.float() + 0.0)
    bits = values.view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    return ordered * 2**32 + (_LOW_WORD - indices)
