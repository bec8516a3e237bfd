"""The runner of `--deterministic`: every product of matrices has one shape, every token goes through one kernel.

The last bits of a matrix product depend on its shape, and those of attention on how its keys are cut. Here a step is
cut into windows of a fixed number of tokens, padded, and all attention is that of the prefill kernel, whose sums go by
blocks of keys from position 0 on. So a token's values depend on its own sequence alone: not on the rest of the batch,
nor on how a prompt was cut into chunks, nor on whether a token was decoded or recomputed. What routes tokens to experts
in groups of varying size is outside of this promise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import pad

from dedicate_runtime.core.batch import ScheduledBatch
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.sampler import TorchSampler
from dedicate_runtime.worker.step_inputs import build_step_inputs

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
    from dedicate_runtime.worker.cuda.cache import CudaKVCache

WINDOW_TOKENS = 256
"""Tokens that are fed at a time; arbitrary: large enough for prompts, small enough for a few decoding sequences."""


class FixedShapeRunner(ModelRunner):
    """Computes steps whose bits do not depend on company."""

    def __init__(
        self,
        model: Any,
        cache: CudaKVCache,
        factory: TritonAttentionFactory,
        *,
        device: torch.device,
        window_tokens: int = WINDOW_TOKENS,
    ) -> None:
        super().__init__(model, cache, factory, TorchSampler(), device=device)
        self._window_tokens = window_tokens

    def capture(self) -> None:
        """Has nothing to capture."""

    def compute_logits(self, batch: ScheduledBatch, positions: Sequence[int]) -> torch.Tensor:
        """Feeds `batch` and returns (len(positions), vocab_size) float32 for positions of the flattened batch."""
        places = torch.tensor(positions, dtype=torch.int64, device=self._device)
        parts = []
        for number, rows in enumerate(_cut(batch.rows, self._window_tokens)):
            logits = self._feed(rows)
            offsets = places - number * self._window_tokens
            is_here = (offsets >= 0) & (offsets < self._window_tokens)
            parts.append((is_here, logits[offsets[is_here]].float()))
        output = torch.empty((len(positions), parts[0][1].shape[-1]), dtype=torch.float32, device=self._device)
        for is_here, logits in parts:
            output[is_here] = logits
        return output

    def _feed(self, rows: Sequence[ScheduledRow]) -> torch.Tensor:
        """Logits of every token of a window, padding included."""
        batch = ScheduledBatch(rows=tuple(rows), num_decode_rows=0)
        inputs = build_step_inputs(batch, block_size=self._cache.block_size, device=self._device)
        num_missing = self._window_tokens - batch.num_tokens
        padded = replace(
            inputs,
            token_ids=pad(inputs.token_ids, (0, num_missing)),
            positions=pad(inputs.positions, (0, num_missing)),
            slot_mapping=pad(inputs.slot_mapping, (0, num_missing), value=-1),
        )
        output = self._model(
            input_ids=padded.token_ids,
            position_ids=padded.positions,
            use_cache=False,
            logits_to_keep=0,
            **{BACKEND_ARGUMENT: self._attention(padded)},
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _cut(rows: Sequence[ScheduledRow], window_tokens: int) -> Iterator[list[ScheduledRow]]:
    """The rows' tokens in order, in windows of `window_tokens` but for the last."""
    window: list[ScheduledRow] = []
    num_free = window_tokens
    for row in rows:
        first = 0
        while first < len(row.token_ids):
            part = row.token_ids[first : first + num_free]
            window.append(replace(row, token_ids=part, start=row.start + first, prompt_targets=()))
            first += len(part)
            num_free -= len(part)
            if not num_free:
                yield window
                window, num_free = [], window_tokens
    if window:
        yield window
