"""One step on the device: a batch of mixed rows in, one result for each row out.

The model's own forward runs once over the flattened batch, however many rows it has; the head runs on the positions
whose logits are needed and on no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dedicate_runtime.core.batch import FinishedStep, RowResult
from dedicate_runtime.core.faults import DeviceLostError
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.logits import compute_logprobs
from dedicate_runtime.worker.sampler import sample
from dedicate_runtime.worker.step_inputs import build_step_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow
    from dedicate_runtime.core.request import TokenLogprobs
    from dedicate_runtime.worker.attention import AttentionFactory
    from dedicate_runtime.worker.kv_cache import BlockCache

_BROKEN_ROW = "The model computed values that are not numbers for this request."


class ModelRunner:
    """A loaded model and its KV cache.

    `model` is called as transformers' causal language models are; its attention must be `attention.IMPLEMENTATION`.
    """

    max_steps_ahead = 0
    """Steps that may be launched before the results of the one before are known."""

    def __init__(self, model: Any, cache: BlockCache, attention: AttentionFactory, *, device: torch.device) -> None:
        self._model = model
        self._cache = cache
        self._attention = attention
        self._device = device

    def launch(self, batch: ScheduledBatch) -> FinishedStep:
        """Starts a step. This runner is done when it returns.

        Raises:
            DeviceLostError: the device is in a state that only a new process gets out of.
        """
        return FinishedStep(self.execute(batch))

    def execute(self, batch: ScheduledBatch) -> list[RowResult]:
        """Computes one step; the cache holds the batch's tokens afterwards.

        Raises:
            DeviceLostError: the device is in a state that only a new process gets out of.
        """
        try:
            return self._execute(batch)
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error

    def _execute(self, batch: ScheduledBatch) -> list[RowResult]:
        with torch.inference_mode():
            if batch.block_copies:
                self._cache.copy_blocks(batch.block_copies)
            sampled = [row for row in batch.rows if row.is_sampled]
            logits = self.compute_logits(batch, _find_logit_positions(batch))
            prompt_logprobs = _compute_prompt_logprobs(logits[len(sampled) :], batch.rows)
            results = iter(_sample_rows(logits[: len(sampled)], sampled))
            return [
                _combine(next(results) if row.is_sampled else RowResult(), prompt_logprobs.get(index, ()))
                for index, row in enumerate(batch.rows)
            ]

    def compute_logits(self, batch: ScheduledBatch, positions: Sequence[int]) -> torch.Tensor:
        """Feeds `batch` and returns (len(positions), vocab_size) float32 for positions of the flattened batch."""
        inputs = build_step_inputs(batch, block_size=self._cache.block_size, device=self._device)
        output = self._model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=torch.tensor(positions, dtype=torch.int64, device=self._device),
            **{BACKEND_ARGUMENT: self._attention(inputs)},
        )
        logits: torch.Tensor = output.logits
        return logits[0].float()


def _find_logit_positions(batch: ScheduledBatch) -> list[int]:
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


def _compute_prompt_logprobs(
    logits: torch.Tensor, rows: Sequence[ScheduledRow]
) -> dict[int, tuple[TokenLogprobs, ...]]:
    """Log-probabilities of the prompt targets, by index of the row; `logits` holds all rows' targets in order."""
    by_row = {}
    first = 0
    for index, row in enumerate(rows):
        if row.prompt_targets:
            last = first + len(row.prompt_targets)
            counts = [row.sampling.num_logprobs or 0] * len(row.prompt_targets)
            by_row[index] = tuple(compute_logprobs(logits[first:last], row.prompt_targets, counts))
            first = last
    return by_row


def _sample_rows(logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> list[RowResult]:
    if not rows:
        return []
    reported = [index for index, row in enumerate(rows) if row.sampling.num_logprobs is not None]
    # Log-probabilities are those of the model, before anything that `sample` does to the logits in place.
    raw_logits = logits[reported]
    tokens = sample(logits, rows)
    entries: dict[int, TokenLogprobs] = {}
    if reported:
        chosen = [tokens.token_ids[index] for index in reported]
        counts = [rows[index].sampling.num_logprobs or 0 for index in reported]
        entries = dict(zip(reported, compute_logprobs(raw_logits, chosen, counts), strict=True))
    return [
        RowResult(error=_BROKEN_ROW) if is_broken else RowResult(token_id=token_id, logprobs=entries.get(index))
        for index, (token_id, is_broken) in enumerate(zip(tokens.token_ids, tokens.is_broken, strict=True))
    ]


def _combine(result: RowResult, prompt_logprobs: tuple[TokenLogprobs, ...]) -> RowResult:
    if not prompt_logprobs:
        return result
    return RowResult(
        token_id=result.token_id,
        logprobs=result.logprobs,
        prompt_logprobs=prompt_logprobs,
        error=result.error,
    )
