"""One step on the device: a batch of mixed rows in, one result for each row out.

The model's own forward runs once over the flattened batch, however many rows it has; the head runs on the positions
whose logits are needed and on no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from dedicate_runtime.core.batch import FinishedStep
from dedicate_runtime.core.faults import DeviceLostError, StepOutOfMemoryError
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.results import find_logit_positions, finish_rows
from dedicate_runtime.worker.step_inputs import build_step_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import RowResult, ScheduledBatch
    from dedicate_runtime.worker.attention import AttentionFactory
    from dedicate_runtime.worker.kv_cache import BlockCache
    from dedicate_runtime.worker.sampler import Sampler

_CPU_OUT_OF_MEMORY = "not enough memory"
"""Source: torch's DefaultCPUAllocator: "DefaultCPUAllocator: not enough memory: you tried to allocate ... bytes"."""


class ModelRunner:
    """A loaded model and its KV cache.

    `model` is called as transformers' causal language models are; its attention must be `attention.IMPLEMENTATION`.
    """

    max_steps_ahead = 0
    """Steps that may be launched before the results of the one before are known."""

    def __init__(
        self, model: Any, cache: BlockCache, attention: AttentionFactory, sampler: Sampler, *, device: torch.device
    ) -> None:
        self._model = model
        self._cache = cache
        self._attention = attention
        self._sampler = sampler
        self._device = device

    def capture(self) -> None:
        """Prepares steps for replay where the device has such a thing. To be called once, after the first steps."""

    def launch(self, batch: ScheduledBatch) -> FinishedStep:
        """Starts a step. This runner is done when it returns.

        Raises:
            StepOutOfMemoryError: the step does not fit; a smaller one may.
            DeviceLostError: the device is in a state that only a new process gets out of.
        """
        return FinishedStep(self.execute(batch))

    def execute(self, batch: ScheduledBatch) -> list[RowResult]:
        """Computes one step; the cache holds the batch's tokens afterwards. Raises as `launch` does."""
        try:
            with torch.inference_mode():
                return self._execute(batch)
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise StepOutOfMemoryError(str(error)) from error
        except RuntimeError as error:
            # On the CPU torch has no class of its own for it.
            if _CPU_OUT_OF_MEMORY in str(error):
                raise StepOutOfMemoryError(str(error)) from error
            raise

    def _execute(self, batch: ScheduledBatch) -> list[RowResult]:
        if batch.block_copies:
            self._cache.copy_blocks(batch.block_copies)
        logits = self.compute_logits(batch, find_logit_positions(batch))
        return finish_rows(logits, batch.rows, self._sampler)

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
