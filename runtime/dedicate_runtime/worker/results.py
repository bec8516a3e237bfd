"""Which logits a step needs, and what comes of them: one result for each row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import RowResult

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
    from dedicate_runtime.core.request import TokenLogprobs
    from dedicate_runtime.worker.sampler import Sampler

BROKEN_ROW = "The model computed values that are not numbers for this request."


def find_logit_positions(batch: ScheduledBatch) -> list[int]:
    """Tokens of the flattened batch: the last of each sampled row, then each whose successor's logprob is wanted."""
    sampled = []
    prompt: list[int] = []
    first = 0
    for row in batch.rows:
        last = first + len(row.token_ids)
        if row.is_sampled:
            sampled.append(last - 1)
        prompt += range(first, first + len(row.prompt_targets))
        first = last
    return sampled + prompt


def finish_rows(logits: torch.Tensor, rows: Sequence[ScheduledRow], sampler: Sampler) -> list[RowResult]:
    """Samples, and reports log-probabilities.

    logits: (n, vocab_size) float32 at the positions of `find_logit_positions`; not to be used afterwards.
    """
    sampled = [row for row in rows if row.is_sampled]
    prompt_logprobs = _report_prompts(logits[len(sampled) :], rows, sampler)
    tokens: Iterator[tuple[int, bool, TokenLogprobs | None]] = iter(())
    if sampled:
        chosen = sampler.sample(logits[: len(sampled)], sampled)
        tokens = zip(chosen.token_ids, chosen.is_broken, chosen.logprobs, strict=True)
    results = []
    for index, row in enumerate(rows):
        token_id, is_broken, logprobs = next(tokens) if row.is_sampled else (None, False, None)
        results.append(
            RowResult(
                token_id=None if is_broken else token_id,
                logprobs=None if is_broken else logprobs,
                prompt_logprobs=prompt_logprobs.get(index, ()),
                error=BROKEN_ROW if is_broken else None,
            )
        )
    return results


def _report_prompts(
    logits: torch.Tensor, rows: Sequence[ScheduledRow], sampler: Sampler
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """Log-probabilities of the prompt targets, by index of the row; `logits` holds all rows' targets in order."""
    by_row = {}
    first = 0
    for index, row in enumerate(rows):
        if row.prompt_targets:
            last = first + len(row.prompt_targets)
            counts = [row.sampling.num_logprobs or 0] * len(row.prompt_targets)
            by_row[index] = tuple(sampler.compute_logprobs(logits[first:last], row.prompt_targets, counts))
            first = last
    return by_row
