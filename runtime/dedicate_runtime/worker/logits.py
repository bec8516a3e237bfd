"""What happens to logits before sampling, and what is reported of them: penalties, ranks, log-probabilities."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from dedicate_runtime.core.request import TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import ScheduledRow, TokenHistory
    from dedicate_runtime.core.request import SamplingParams

_SPARE_CANDIDATES = 8
"""Ranked beyond those asked for, so that equal logits at the border rarely need a full sort; arbitrary."""

_LOGPROB_ROWS = 64
"""Rows whose log-probabilities are computed at a time: bounds the copies that this takes; arbitrary."""


def adjust_logits(logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> None:
    """Applies penalties, biases and the ban on early end tokens, in place, to the rows that have any.

    logits: (num_rows, vocab_size) float32.
    """
    for row_logits, row in zip(logits, rows, strict=True):
        sampling = row.sampling
        if row.history is not None:
            _penalise(row_logits, sampling, row.history)
        if sampling.logit_bias:
            ids = torch.tensor(list(sampling.logit_bias), device=logits.device)
            row_logits[ids] += torch.tensor(list(sampling.logit_bias.values()), device=logits.device)
        if row.output_position < sampling.min_tokens and sampling.end_ids:
            row_logits[torch.tensor(sorted(sampling.end_ids), device=logits.device)] = -torch.inf


def _penalise(logits: torch.Tensor, sampling: SamplingParams, history: TokenHistory) -> None:
    """Repetition as in transformers' `generate()`, prompt included; presence and frequency as OpenAI defines them."""
    device = logits.device
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*history.prompt_token_ids, *history.output_token_ids}), device=device)
        scores = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = Counter(history.output_token_ids)
        if counts:
            ids = torch.tensor(list(counts), device=device)
            occurrences = torch.tensor(list(counts.values()), dtype=torch.float32, device=device)
            logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * occurrences


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
    normalisers = logits.logsumexp(dim=-1, keepdim=True)
    chosen = torch.tensor(token_ids, device=logits.device)[:, None]
    chosen_logprobs = (logits.gather(-1, chosen) - normalisers)[:, 0].tolist()
    ids, values = rank_candidates(logits, max(*counts, 1))
    top_ids, top_logprobs = ids.tolist(), (values - normalisers).tolist()
    entries = []
    for row, (token_id, logprob, count) in enumerate(zip(token_ids, chosen_logprobs, counts, strict=True)):
        top = list(zip(top_ids[row][:count], top_logprobs[row][:count], strict=True))
        if token_id not in top_ids[row][:count]:
            top.append((token_id, logprob))
            top.sort(key=lambda pair: (-pair[1], pair[0]))
        entries.append(TokenLogprobs(token_id, logprob, tuple(top)))
    return entries
