"""What happens to logits before sampling, and what is reported of them: penalties, ranks, log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.core.request import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.worker.sampling_adjustments import RowAdjustments

_SPARE_CANDIDATES = 8
"""Ranked beyond those asked for, so that equal logits at the border rarely need a full sort; arbitrary."""

_LOGPROB_ROWS = 64
"""Rows whose log-probabilities are computed at a time: bounds the copies that this takes; arbitrary."""


def adjust_logits(logits: torch.Tensor, rows: Sequence[ScheduledRow], adjustments: Sequence[RowAdjustments]) -> None:
    """Applies penalties, biases and bans to the rows that have any, in place and in this order.

    Repetition as in transformers' `generate()`, prompt included; presence and frequency as OpenAI defines them.

    logits: (num_rows, vocab_size) float32. adjustments: one for each row.
    """
    device = logits.device
    if any(len(one.seen) for one in adjustments):
        seen = np.concatenate([one.seen for one in adjustments])
        penalties = [
            (row.sampling.repetition_penalty, row.sampling.presence_penalty, row.sampling.frequency_penalty)
            for row in rows
        ]
        per_row = [len(one.seen) for one in adjustments]
        places = _places(per_row, seen[:, 0], device)
        columns = torch.from_numpy(np.repeat(np.array(penalties, dtype=np.float32), per_row, axis=0)).to(device)
        repetition, presence, frequency = columns.unbind(-1)
        counts = torch.from_numpy(seen[:, 1].astype(np.float32)).to(device)
        scores = logits[places]
        scores = torch.where(scores < 0, scores * repetition, scores / repetition)
        logits[places] = torch.where(counts > 0, scores - (presence + frequency * counts), scores)
    if any(len(one.biases) for one in adjustments):
        biases = np.concatenate([one.biases for one in adjustments])
        places = _places([len(one.biases) for one in adjustments], biases["token_id"], device)
        added = torch.from_numpy(biases["bias"].copy()).to(device)
        # A ban holds whatever was there: not a number, too.
        logits[places] = torch.where(added == -torch.inf, added, logits[places] + added)


def _places(
    per_row: Sequence[int], token_ids: NDArray[np.int32], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of (row, token) pairs, `per_row[i]` of them in row i."""
    rows = torch.from_numpy(np.repeat(np.arange(len(per_row)), per_row))
    return rows.to(device), torch.from_numpy(token_ids.astype(np.int64)).to(device)


def rank_candidates(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best `count` tokens of each row in descending order of logit, equal ones in ascending order of id.

    logits: (num_rows, vocab_size). Returns ids and their logits, (num_rows, min(count, vocab_size)) each. `topk` alone
    breaks ties as it likes, and in bfloat16 ties are common.
    """
    vocab_size = logits.shape[-1]
    count = min(count, vocab_size)
    width = min(count + _SPARE_CANDIDATES, vocab_size)
    if width == vocab_size:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return ids[:, :count], values[:, :count]
    values, ids = logits.topk(width, dim=-1)
    is_cut_in_tie = values[:, count - 1] == values[:, -1]
    ids, order = ids.sort(dim=-1)
    values, order = values.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(-1, order)
    if is_cut_in_tie.any():
        sorted_values, sorted_ids = logits[is_cut_in_tie].sort(dim=-1, descending=True, stable=True)
        values[is_cut_in_tie] = sorted_values[:, :width]
        ids[is_cut_in_tie] = sorted_ids[:, :width]
    return ids[:, :count], values[:, :count]


def compute_logprobs(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    """Log-probabilities of `token_ids[i]` and of the best `counts[i]` tokens, in row i of `logits` as they are.

    logits: (num_rows, vocab_size) float32.
    """
    entries: list[TokenLogprobs] = []
    for start in range(0, len(token_ids), _LOGPROB_ROWS):
        part = slice(start, start + _LOGPROB_ROWS)
        entries += _compute_part(logits[part], token_ids[part], counts[part])
    return entries


def _compute_part(logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]) -> list[TokenLogprobs]:
    best = logits.amax(dim=-1, keepdim=True)
    # Sums in double, without a copy of the row in double.
    normalisers = best + (logits - best).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64).log_()
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    chosen_logprobs = (logits.gather(-1, chosen) - normalisers)[:, 0].tolist()
    ids, values = rank_candidates(logits, max(*counts, 1))
    top_ids, top_logprobs = ids.tolist(), (values - normalisers).tolist()
    return [
        build_logprobs(token_id, logprob, top_ids[row][:count], top_logprobs[row][:count])
        for row, (token_id, logprob, count) in enumerate(zip(token_ids, chosen_logprobs, counts, strict=True))
    ]


def build_logprobs(
    token_id: int, logprob: float, top_ids: Sequence[int], top_logprobs: Sequence[float]
) -> TokenLogprobs:
    """The chosen token among the best ones, which come in descending order: last, where it is none of them."""
    top = tuple(zip(top_ids, top_logprobs, strict=True))
    return TokenLogprobs(token_id, logprob, top if token_id in top_ids else (*top, (token_id, logprob)))
