"""Steps whose tokens the host must see to: log-probabilities, penalties, biases, rows with many candidates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import RowResult
from dedicate_runtime.worker.sampler import TorchSampler

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
    from dedicate_runtime.core.request import TokenLogprobs

BROKEN_ROW = "The model computed values that are not numbers for this request."


def find_logit_positions(batch: ScheduledBatch) -> list[int]:
    """First the last token of each sampled row, then every token whose successor's logprob is wanted."""
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


class HostSampler:
    """`worker.sampler` over the logits of a step."""

    def __init__(self) -> None:
        self._sampler = TorchSampler()

    def finish(self, logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> list[RowResult]:
        """Results of all `rows`; `logits` are those that `find_logit_positions` names, in its order."""
        sampled = [row for row in rows if row.is_sampled]
        prompt_logprobs = self._report_prompts(logits[len(sampled) :], rows)
        tokens: Iterator[tuple[int, bool, TokenLogprobs | None]] = iter(())
        if sampled:
            chosen = self._sampler.sample(logits[: len(sampled)].float(), sampled)
            tokens = iter(zip(chosen.token_ids, chosen.is_broken, chosen.logprobs, strict=True))
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
        self, logits: torch.Tensor, rows: Sequence[ScheduledRow]
    ) -> dict[int, tuple[TokenLogprobs, ...]]:
        by_row = {}
        first = 0
        for index, row in enumerate(rows):
            if row.prompt_targets:
                last = first + len(row.prompt_targets)
                counts = [row.sampling.num_logprobs or 0] * len(row.prompt_targets)
                entries = self._sampler.compute_logprobs(logits[first:last].float(), row.prompt_targets, counts)
                by_row[index] = tuple(entries)
                first = last
        return by_row
