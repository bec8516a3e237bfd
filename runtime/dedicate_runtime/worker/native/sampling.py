"""Sampling by the compiled kernels: all rows of a step in one call, spread over the pool's threads."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING

import numpy as np

from dedicate_runtime.worker.logits import build_logprobs
from dedicate_runtime.worker.sampler import SampledTokens
from dedicate_runtime.worker.sampling_adjustments import AdjustmentBook

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.core.request import TokenLogprobs
    from dedicate_runtime.worker.native.library import Pool
    from dedicate_runtime.worker.sampling_adjustments import RowAdjustments

MAX_ALTERNATIVES = 512
"""`kMaxHead` of kernels/sampling.cpp. Requests ask for far fewer."""

_ALIGNMENT = 64
_SEED_MASK = (1 << 64) - 1

_SAMPLING = struct.Struct("=6dq2QQqQq")
"""`DedicateSampling` of kernels/sampling.h."""

_SAMPLED = np.dtype([("token_id", np.int64), ("is_broken", np.int64)])

_LOGPROBS = np.dtype(
    [
        ("token_id", np.int64),
        ("logprob", np.float64),
        ("num_top", np.int64),
        ("top_ids", np.uint64),
        ("top_logprobs", np.uint64),
    ]
)

_POINTER = ctypes.c_void_p
_INT64 = ctypes.c_int64


class NativeSampler:
    """A `Sampler` for float32 logits in the host's memory. One caller at a time, as for the pool."""

    def __init__(self, pool: Pool) -> None:
        functions = pool.kernels.functions
        self._scratch_bytes = functions.dedicate_sample_scratch_bytes
        self._scratch_bytes.restype, self._scratch_bytes.argtypes = _INT64, (_INT64,)
        common = (_POINTER, _POINTER, _INT64, _INT64, _INT64)
        self._sample_rows = functions.dedicate_sample_rows
        self._sample_rows.restype, self._sample_rows.argtypes = None, (*common, *([_POINTER] * 5))
        self._logprobs_rows = functions.dedicate_logprobs_rows
        self._logprobs_rows.restype, self._logprobs_rows.argtypes = None, (*common, _POINTER, _POINTER)
        self._pool = pool
        self._adjustments = AdjustmentBook()
        self._scratch = np.empty(0, dtype=np.uint8)

    def sample(self, logits: torch.Tensor, rows: Sequence[ScheduledRow]) -> SampledTokens:
        """As `Sampler` says; leaves the logits as they are."""
        adjustments = self._adjustments.update(rows)
        samplings = b"".join([_pack(row, one) for row, one in zip(rows, adjustments, strict=True)])
        sampled = np.empty(len(rows), dtype=_SAMPLED)
        counts = [row.sampling.num_logprobs for row in rows]
        is_reported = [count is not None for count in counts]
        logprobs = _LogprobsBuffer([count or 0 for count in counts]) if any(is_reported) else None
        self._sample_rows(
            *self._place(logits),
            samplings,
            sampled.ctypes.data,
            bytes(is_reported),
            logprobs and logprobs.address,
            self._reserve(logits.shape[-1]),
        )
        is_broken = [flag != 0 for flag in sampled["is_broken"].tolist()]
        wanted = [flag and not broken for flag, broken in zip(is_reported, is_broken, strict=True)]
        return SampledTokens(
            token_ids=sampled["token_id"].tolist(),
            is_broken=is_broken,
            logprobs=[None] * len(rows) if logprobs is None else logprobs.read(wanted),
        )

    def compute_logprobs(
        self, logits: torch.Tensor, token_ids: Sequence[int], counts: Sequence[int]
    ) -> list[TokenLogprobs]:
        """As `Sampler` says."""
        logprobs = _LogprobsBuffer(counts)
        logprobs.records["token_id"] = token_ids
        self._logprobs_rows(*self._place(logits), logprobs.address, self._reserve(logits.shape[-1]))
        return [logprobs.read_row(row) for row in range(len(counts))]

    def _place(self, logits: torch.Tensor) -> tuple[int, int, int, int, int]:
        assert logits.device.type == "cpu"
        assert logits.element_size() == 4
        assert logits.stride(1) == 1
        return self._pool.handle, logits.data_ptr(), logits.shape[0], logits.stride(0), logits.shape[1]

    def _reserve(self, vocab_size: int) -> int:
        """The address of working memory for all threads."""
        num_bytes = self._scratch_bytes(vocab_size) * self._pool.num_threads + _ALIGNMENT
        if len(self._scratch) < num_bytes:
            self._scratch = np.empty(num_bytes, dtype=np.uint8)
        return -(-self._scratch.ctypes.data // _ALIGNMENT) * _ALIGNMENT


class _LogprobsBuffer:
    """`DedicateLogprobs` for each row, and the memory that they point to."""

    def __init__(self, counts: Sequence[int]) -> None:
        width = max(counts, default=0)
        assert width <= MAX_ALTERNATIVES
        self._top_ids = np.empty((len(counts), width), dtype=np.int32)
        self._top_logprobs = np.empty((len(counts), width), dtype=np.float64)
        self.records = np.zeros(len(counts), dtype=_LOGPROBS)
        self.records["num_top"] = counts
        self.records["top_ids"] = _row_addresses(self._top_ids)
        self.records["top_logprobs"] = _row_addresses(self._top_logprobs)

    @property
    def address(self) -> int:
        return self.records.ctypes.data

    def read(self, is_filled: Sequence[bool]) -> list[TokenLogprobs | None]:
        return [self.read_row(row) if filled else None for row, filled in enumerate(is_filled)]

    def read_row(self, row: int) -> TokenLogprobs:
        token_id, logprob, num_top, _, _ = self.records[row].item()
        return build_logprobs(
            token_id, logprob, self._top_ids[row, :num_top].tolist(), self._top_logprobs[row, :num_top].tolist()
        )


def _pack(row: ScheduledRow, adjustments: RowAdjustments) -> bytes:
    """One row's `DedicateSampling`; its pointers are valid as long as `adjustments` lives."""
    sampling = row.sampling
    seen, biases = adjustments.seen, adjustments.biases
    return _SAMPLING.pack(
        sampling.temperature,
        sampling.top_p,
        sampling.min_p,
        sampling.repetition_penalty,
        sampling.presence_penalty,
        sampling.frequency_penalty,
        sampling.top_k,
        sampling.seed & _SEED_MASK,
        row.output_position,
        seen.ctypes.data if len(seen) else 0,
        len(seen),
        biases.ctypes.data if len(biases) else 0,
        len(biases),
    )


def _row_addresses(rows: NDArray[np.generic]) -> NDArray[np.uint64]:
    return np.uint64(rows.ctypes.data) + np.arange(len(rows), dtype=np.uint64) * np.uint64(rows.strides[0])
