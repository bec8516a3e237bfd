"""The model runner of CUDA devices: decode by graph, tokens that stay on the device, the host one step behind.

One step in stream order:

1. The decode rows' inputs are filled in and the graph of their bucket replayed: layers, head and sampling.
2. Rows that prefill, and decode rows that no bucket takes, are one eager forward.
3. What was sampled lies in `_sampled`, by index of the row in the batch, where the next step's rows find their tokens
   (`ScheduledRow.fed_by`); a copy is on its way to the host. `wait` waits for that copy and for nothing else.

Rows that the device cannot sample alone (`sampling.is_narrow`) make their step wait: logits come from the same graph,
tokens from `worker.sampler`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dedicate_runtime.core.batch import FinishedStep, RowResult, ScheduledBatch
from dedicate_runtime.core.faults import DeviceLostError, StepOutOfMemoryError
from dedicate_runtime.worker.attention import BACKEND_ARGUMENT
from dedicate_runtime.worker.cuda.buffers import DecodeBuffers, build_columns
from dedicate_runtime.worker.cuda.geometry import DecodeGeometry, Geometry
from dedicate_runtime.worker.cuda.graphs import CapturedSteps, DecodeSteps, UncapturedSteps, choose_buckets
from dedicate_runtime.worker.cuda.sampling import is_narrow, sample_narrow
from dedicate_runtime.worker.cuda.upload import upload
from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.results import BROKEN_ROW, find_logit_positions, finish_rows
from dedicate_runtime.worker.sampler import TorchSampler
from dedicate_runtime.worker.step_inputs import build_step_inputs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.worker.cuda.attention import TritonAttentionFactory
    from dedicate_runtime.worker.cuda.cache import CudaKVCache
    from dedicate_runtime.worker.model_runner import ModelRunner
from dedicate_runtime.worker.step_inputs import StepInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """What the persistent buffers must hold."""

    max_num_seqs: int
    max_model_len: int


class _SentStep:
    """A step whose tokens are on their way to the host."""

    def __init__(self, rows: Sequence[ScheduledRow], sampled: torch.Tensor) -> None:
        self._rows = rows
        self._event: torch.cuda.Event | None = None
        if sampled.device.type == "cuda":
            self._host = torch.empty(sampled.shape, dtype=sampled.dtype, pin_memory=True)
            self._host.copy_(sampled, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
        else:
            self._host = sampled.clone()

    def wait(self) -> list[RowResult]:
        """Returns one result for each row once the tokens are there."""
        return [
            RowResult()
            if not row.is_sampled
            else RowResult(error=BROKEN_ROW)
            if is_broken
            else RowResult(token_id=token_id)
            for row, (token_id, is_broken) in zip(self._rows, self._read(), strict=True)
        ]

    def _read(self) -> list[tuple[int, int]]:
        try:
            if self._event is not None:
                self._event.synchronize()
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        pairs: list[tuple[int, int]] = self._host.tolist()
        return pairs


class CudaModelRunner(ModelRunner):
    """A loaded model and its cache on one device; also runs on CPU tensors where Triton interprets its kernels."""

    max_steps_ahead = 1

    def __init__(
        self,
        model: Any,
        cache: CudaKVCache,
        factory: TritonAttentionFactory,
        *,
        limits: RunnerLimits,
        device: torch.device,
        has_graphs: bool = True,
    ) -> None:
        super().__init__(model, cache, factory, TorchSampler(), device=device)
        buckets = choose_buckets(limits.max_num_seqs)
        max_rows = max(buckets[-1], limits.max_num_seqs)
        self._factory = factory
        self._buffers = DecodeBuffers(
            max_rows=max_rows,
            # One more than a full sequence takes: a step ahead may have its next block already.
            max_blocks=-(-limits.max_model_len // cache.block_size) + 1,
            block_size=cache.block_size,
            device=device,
        )
        self._sampled = torch.zeros((max_rows, 2), dtype=torch.int64, device=device)
        steps_class = CapturedSteps if device.type == "cuda" else UncapturedSteps
        self._steps: DecodeSteps = steps_class(self._compute_decode, buckets if has_graphs else ())

    def capture(self) -> None:
        """Captures the decode graphs; before it, and where it fails, decode steps are eager."""
        if isinstance(self._steps, CapturedSteps):
            self._steps.capture()

    def launch(self, batch: ScheduledBatch) -> FinishedStep | _SentStep:  # type: ignore[override]
        """Starts a step and returns before the device has computed it.

        Raises:
            StepOutOfMemoryError: the step does not fit; a smaller one may.
            DeviceLostError: the device is in a state that only a new process gets out of.
        """
        try:
            with torch.inference_mode():
                return self._launch(batch)
        except torch.OutOfMemoryError as error:
            self._buffers.forget()
            raise StepOutOfMemoryError(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        except Exception:
            self._buffers.forget()
            raise

    def execute(self, batch: ScheduledBatch) -> list[RowResult]:
        """Computes one step and waits for it; raises as `launch` does."""
        return self.launch(batch).wait()

    def compute_logits(self, batch: ScheduledBatch, positions: Sequence[int]) -> torch.Tensor:
        """Feeds `batch` eagerly: (len(positions), vocab_size) float32 for positions of the flattened batch."""
        return self._forward(batch, positions).float()

    def _launch(self, batch: ScheduledBatch) -> FinishedStep | _SentStep:
        rows = batch.rows
        if batch.block_copies:
            self._cache.copy_blocks(batch.block_copies)
        graph_logits = self._run_decode(rows[: batch.num_decode_rows])
        num_done = 0 if graph_logits is None else batch.num_decode_rows
        rest = ScheduledBatch(rows=rows[num_done:], num_decode_rows=batch.num_decode_rows - num_done)
        rest_logits = self._forward(rest, find_logit_positions(rest)) if rest.rows else None
        if all(is_narrow(row) if row.is_sampled else not row.prompt_targets for row in rows):
            if rest_logits is not None:
                self._sample_rest(rest.rows, rest_logits, num_done)
            return _SentStep(rows, self._sampled[: len(rows)])
        parts = [logits for logits in (graph_logits, rest_logits) if logits is not None]
        return self._sample_on_host(rows, parts[0] if len(parts) == 1 else torch.cat(parts))

    def _run_decode(self, rows: Sequence[ScheduledRow]) -> torch.Tensor | None:
        """Logits of decode rows, whose tokens are sampled too; None if there are no rows or no bucket takes them."""
        bucket = self._steps.find_bucket(len(rows)) if rows else None
        if bucket is None:
            return None
        self._buffers.fill(rows)
        return self._steps.run(bucket)[: len(rows)]

    def _compute_decode(self, num_rows: int) -> torch.Tensor:
        """The step that graphs hold: from the buffers to (num_rows, vocab_size) logits and `_sampled`."""
        inputs = self._buffers.view(num_rows)
        fed = self._sampled[:, 0][inputs.fed_by.clamp_min(0)]
        token_ids = torch.where(inputs.fed_by < 0, inputs.token_ids, fed)
        geometry = Geometry(
            slot_mapping=inputs.slot_mapping,
            decode=DecodeGeometry(
                num_rows=num_rows,
                block_tables=inputs.block_tables,
                context_lens=inputs.context_lens,
                num_splits=self._factory.count_splits(num_rows),
            ),
            prefill=None,
        )
        output = self._model(
            input_ids=token_ids[None],
            position_ids=inputs.positions[None],
            use_cache=False,
            logits_to_keep=0,
            **{BACKEND_ARGUMENT: self._factory.on(geometry)},
        )
        logits: torch.Tensor = output.logits[0]
        self._sampled[:num_rows] = sample_narrow(logits, inputs.sampling)
        return logits

    def _forward(self, batch: ScheduledBatch, positions: Sequence[int]) -> torch.Tensor:
        """Feeds `batch` eagerly: (len(positions), vocab_size) in the model's own number format."""
        inputs = self._build_inputs(batch)
        output = self._model(
            input_ids=inputs.token_ids,
            position_ids=inputs.positions,
            use_cache=False,
            logits_to_keep=upload(np.array(positions, dtype=np.int64), self._device),
            **{BACKEND_ARGUMENT: self._factory(inputs)},
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _build_inputs(self, batch: ScheduledBatch) -> StepInputs:
        on_host = build_step_inputs(batch, block_size=self._cache.block_size, device=torch.device("cpu"))
        inputs = replace(
            on_host,
            token_ids=upload(on_host.token_ids.numpy(), self._device),
            positions=upload(on_host.positions.numpy(), self._device),
            slot_mapping=upload(on_host.slot_mapping.numpy(), self._device),
            device=self._device,
        )
        places = [(index, row.fed_by) for index, row in enumerate(batch.rows) if row.fed_by is not None]
        if places:
            # Rows that are fed on the device decode: they come first and their index is that of their token.
            targets, sources = upload(np.array(places, dtype=np.int64).T.copy(), self._device)
            inputs.token_ids[0].index_copy_(0, targets, self._sampled[:, 0][sources])
        return inputs

    def _sample_rest(self, rows: Sequence[ScheduledRow], logits: torch.Tensor, first: int) -> None:
        """Samples rows of the eager forward on the device; `first` is the index of the first of them in the batch."""
        sampled = [(first + index, row) for index, row in enumerate(rows) if row.is_sampled]
        if sampled:
            columns = build_columns([row for _, row in sampled], self._device)
            places = upload(np.array([index for index, _ in sampled], dtype=np.int64), self._device)
            self._sampled.index_copy_(0, places, sample_narrow(logits, columns))

    def _sample_on_host(self, rows: Sequence[ScheduledRow], logits: torch.Tensor) -> FinishedStep:
        """Waits for `logits`, those of sampled rows and then those of prompt targets, and finishes the step."""
        results = finish_rows(logits.float(), rows, self._sampler)
        tokens = np.array([[result.token_id or 0, result.error is not None] for result in results], dtype=np.int64)
        self._sampled[: len(rows)] = upload(tokens, self._device)
        return FinishedStep(results)
