"""Where the rows of a batch lie, as the attention kernels read it: int32 tables on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.worker.cuda.upload import upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.batch import ScheduledRow
    from dedicate_runtime.worker.step_inputs import StepInputs

MAX_SPLITS = 64
"""Parts that the keys of one decode row are cut into at most; what `merge_kernel` takes at a time."""

_WAVES = 4
"""Programs that the decode kernel should have for each multiprocessor, so that reads overlap; arbitrary."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeGeometry:
    """Rows of one query token each, first in the batch.

    block_tables: (num_rows, any) int32
    context_lens: (num_rows,) of any integers, the fed token included, 0 for padding
    """

    num_rows: int
    block_tables: torch.Tensor
    context_lens: torch.Tensor
    num_splits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillGeometry:
    """Rows of several query tokens, behind the decode rows.

    block_tables: (num_rows, any) int32
    tiles: (num_tiles, 2) int32, see `kernels.prefill_kernel`, for tiles of `tile_size` tokens
    row_spans: (num_rows, 3) int32, likewise
    """

    block_tables: torch.Tensor
    tiles: torch.Tensor
    tile_size: int
    row_spans: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """A batch. slot_mapping: (num_tokens,) int64, below zero where a token is padding and must not be written.

    `is_padded`: tokens behind those of all rows belong to none.
    """

    slot_mapping: torch.Tensor
    decode: DecodeGeometry | None
    prefill: PrefillGeometry | None
    is_padded: bool = False


def count_splits(num_rows: int, num_kv_heads: int, num_multiprocessors: int) -> int:
    """Parts of a row's keys that fill the device: a power of two, the same for every batch of this size."""
    programs = max(num_rows * num_kv_heads, 1)
    wanted = -(-_WAVES * num_multiprocessors // programs)
    return min(1 << max(wanted - 1, 0).bit_length(), MAX_SPLITS)


def count_multiprocessors(device: torch.device) -> int:
    """Multiprocessors of `device`; on the CPU, where kernels are interpreted, a small number."""
    if device.type != "cuda":
        return 2
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def fill_tables(rows: Sequence[ScheduledRow]) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    """(num_rows, longest table) int32, padded with the null block."""
    tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
    for index, row in enumerate(rows):
        tables[index, : len(row.block_table)] = row.block_table
    return tables


def build_geometry(inputs: StepInputs, *, tile_size: int, num_splits: int) -> Geometry:
    """The geometry of any batch."""
    device = inputs.device
    decode_rows = inputs.rows[: inputs.num_decode_rows]
    prefill_rows = inputs.rows[inputs.num_decode_rows :]
    decode = None
    if decode_rows:
        decode = DecodeGeometry(
            num_rows=len(decode_rows),
            block_tables=upload(fill_tables(decode_rows), device),
            context_lens=upload(np.array([row.end for row in decode_rows]), device),
            num_splits=num_splits,
        )
    prefill = None
    if prefill_rows:
        prefill = _build_prefill(prefill_rows, len(decode_rows), tile_size, device)
    num_tokens = sum(len(row.token_ids) for row in inputs.rows)
    return Geometry(
        slot_mapping=inputs.slot_mapping,
        decode=decode,
        prefill=prefill,
        is_padded=num_tokens < len(inputs.slot_mapping),
    )


def _build_prefill(
    rows: Sequence[ScheduledRow], first_token: int, tile_size: int, device: torch.device
) -> PrefillGeometry:
    spans = []
    tiles = []
    for index, row in enumerate(rows):
        num_tokens = len(row.token_ids)
        spans.append((first_token, num_tokens, row.start))
        first_token += num_tokens
        tiles += [(row.start + offset, index, offset) for offset in range(0, num_tokens, tile_size)]
    # The longest first: the short ones fill the gaps at the end.
    tiles.sort(key=lambda tile: -tile[0])
    return PrefillGeometry(
        block_tables=upload(fill_tables(rows), device),
        tiles=upload(np.array([tile[1:] for tile in tiles], dtype=np.int32), device),
        tile_size=tile_size,
        row_spans=upload(np.array(spans, dtype=np.int32), device),
    )
