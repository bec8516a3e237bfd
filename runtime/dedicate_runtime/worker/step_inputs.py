"""Where each token of a batch sits: its position, its slot, and the slots that it looks back on.

Computed once a step, in numpy on the host, and read by every layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dedicate_runtime.core.batch import ScheduledBatch, ScheduledRow


_MIN_GROUP_KEYS = 64
"""Rows with no more keys than this share a group, whatever their lengths; arbitrary: a call costs more than padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeView:
    """What the decode rows [first, last) of the batch, which are of like length, look at.

    slots: (num_rows, num_keys) int64, padded with slot 0
    mask: (num_rows, 1, 1, num_keys) bool, True where a key is real; None if all are
    """

    first: int
    last: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillView:
    """What the tokens [first, last) of the batch, a chunk of one prompt, look at.

    slots: (num_keys,) int64; None if the chunk looks at nothing but itself
    mask: (num_tokens, num_keys) bool; None if it is the plain causal one, which implies that slots is None
    """

    first: int
    last: int
    slots: torch.Tensor | None
    mask: torch.Tensor | None


@dataclass(slots=True, kw_only=True)
class StepInputs:
    """The flattened batch. Views are made on first use, one for each window size that the model's layers have.

    token_ids, positions: (1, num_tokens) int64
    slot_mapping: (num_tokens,) int64, the slot that each token's key and value go to
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slot_mapping: torch.Tensor
    rows: tuple[ScheduledRow, ...]
    num_decode_rows: int
    block_size: int
    device: torch.device
    _decode_views: dict[int | None, list[DecodeView]] = field(default_factory=dict)
    _prefill_views: dict[int | None, list[PrefillView]] = field(default_factory=dict)

    def decode_views(self, window: int | None) -> list[DecodeView]:
        """Keys of the decode rows, by groups of like length; with a `window` only the last that many of each row."""
        views = self._decode_views.get(window)
        if views is None:
            views = self._decode_views[window] = self._build_decode_views(window)
        return views

    def prefill_views(self, window: int | None) -> list[PrefillView]:
        """One view for each row after the decode rows."""
        views = self._prefill_views.get(window)
        if views is None:
            views = self._prefill_views[window] = self._build_prefill_views(window)
        return views

    def _build_decode_views(self, window: int | None) -> list[DecodeView]:
        """Groups rows so that none is padded to more than twice its length: one long row must not cost all others."""
        num_keys = [row.end if window is None else min(row.end, window) for row in self.rows[: self.num_decode_rows]]
        views = []
        first = 0
        while first < len(num_keys):
            limit = max(2 * num_keys[first], _MIN_GROUP_KEYS)
            last = next((i for i in range(first, len(num_keys)) if num_keys[i] > limit), len(num_keys))
            views.append(self._build_decode_view(first, last, window))
            first = last
        return views

    def _build_decode_view(self, first: int, last: int, window: int | None) -> DecodeView:
        rows = self.rows[first:last]
        lengths = np.array([row.end for row in rows])
        starts = np.zeros_like(lengths) if window is None else np.maximum(lengths - window, 0)
        num_keys = int((lengths - starts).max())
        positions = starts[:, None] + np.arange(num_keys)
        is_real = positions < lengths[:, None]
        tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int64)
        for index, row in enumerate(rows):
            tables[index, : len(row.block_table)] = row.block_table
        positions = np.where(is_real, positions, 0)
        blocks = np.take_along_axis(tables, positions // self.block_size, axis=1)
        slots = np.where(is_real, blocks * self.block_size + positions % self.block_size, 0)
        mask = None if is_real.all() else self._to_device(is_real[:, None, None, :])
        return DecodeView(first=first, last=last, slots=self._to_device(slots), mask=mask)

    def _build_prefill_views(self, window: int | None) -> list[PrefillView]:
        views = []
        first = self.num_decode_rows
        for row in self.rows[self.num_decode_rows :]:
            last = first + len(row.token_ids)
            views.append(self._build_prefill_view(row, first, last, window))
            first = last
        return views

    def _build_prefill_view(self, row: ScheduledRow, first: int, last: int, window: int | None) -> PrefillView:
        if row.start == 0 and (window is None or row.end <= window):
            return PrefillView(first=first, last=last, slots=None, mask=None)
        # The chunk's first token reaches furthest back.
        start = 0 if window is None else max(row.start - window + 1, 0)
        keys = np.arange(start, row.end)
        queries = np.arange(row.start, row.end)
        mask = keys[None, :] <= queries[:, None]
        if window is not None:
            mask &= keys[None, :] > queries[:, None] - window
        slots = None if row.start == 0 else self._to_device(_find_slots(row, keys, self.block_size))
        return PrefillView(first=first, last=last, slots=slots, mask=self._to_device(mask))

    def _to_device(self, array: NDArray[np.generic]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


def _find_slots(row: ScheduledRow, positions: NDArray[np.int64], block_size: int) -> NDArray[np.int64]:
    table = np.array(row.block_table, dtype=np.int64)
    return table[positions // block_size] * block_size + positions % block_size


def build_step_inputs(batch: ScheduledBatch, *, block_size: int, device: torch.device) -> StepInputs:
    """Flattens `batch` into one row of tokens."""
    row_positions = [np.arange(row.start, row.end) for row in batch.rows]
    slots = [_find_slots(row, positions, block_size) for row, positions in zip(batch.rows, row_positions, strict=True)]
    token_ids = np.concatenate([np.array(row.token_ids, dtype=np.int64) for row in batch.rows])
    return StepInputs(
        token_ids=torch.from_numpy(token_ids)[None].to(device),
        positions=torch.from_numpy(np.concatenate(row_positions))[None].to(device),
        slot_mapping=torch.from_numpy(np.concatenate(slots)).to(device),
        rows=batch.rows,
        num_decode_rows=batch.num_decode_rows,
        block_size=block_size,
        device=device,
    )
