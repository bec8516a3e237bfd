"""Native attention: one step's tables as the kernels read them, and the backend for layers that are not fused."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.worker.native.library import Layer, Step

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dedicate_runtime.worker.attention import AttentionVariant
    from dedicate_runtime.worker.kv_cache import LayerShape
    from dedicate_runtime.worker.native.cache import NativeKVCache
    from dedicate_runtime.worker.native.library import Pool
    from dedicate_runtime.worker.step_inputs import StepInputs

_LANES = 16
"""Head dimensions must be a multiple of the widest vector's lanes."""

_MAX_HEAD_DIM = 256


def why_not_native(shapes: Mapping[int, LayerShape], variants: Mapping[int, AttentionVariant]) -> str | None:
    """What of the model's attention the kernels do not compute; None if they serve every layer."""
    for layer, shape in shapes.items():
        variant = variants[layer]
        if shape.key_dim != shape.value_dim:
            return f"layer {layer} has keys of {shape.key_dim} and values of {shape.value_dim} dimensions"
        if shape.key_dim % _LANES or shape.key_dim > _MAX_HEAD_DIM:
            return f"layer {layer} has heads of {shape.key_dim} dimensions"
        if not variant.is_plain:
            return f"layer {layer} has attention sinks or soft-capping"
    return None


class NativeStep:
    """The backend of one step. Keeps what the kernels point to."""

    def __init__(self, pool: Pool, cache: NativeKVCache, stack_handle: int, inputs: StepInputs) -> None:
        self._pool = pool
        self._cache = cache
        self._stack_handle = stack_handle
        rows = inputs.rows
        self._row_first = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(row.token_ids) for row in rows], out=self._row_first[1:])
        self._row_start = np.array([row.start for row in rows], dtype=np.int32)
        self._tables = np.zeros((len(rows), max(len(row.block_table) for row in rows)), dtype=np.int32)
        for index, row in enumerate(rows):
            self._tables[index, : len(row.block_table)] = row.block_table
        self._slots = inputs.slot_mapping
        self.step = Step(
            num_tokens=inputs.slot_mapping.numel(),
            slots=inputs.slot_mapping.data_ptr(),
            num_rows=len(rows),
            row_first=self._row_first.ctypes.data,
            row_start=self._row_start.ctypes.data,
            block_tables=self._tables.ctypes.data,
            table_stride=self._tables.shape[1],
        )

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, variant: AttentionVariant
    ) -> torch.Tensor:
        """See `worker.attention.AttentionBackend.attend`."""
        queries = query.transpose(0, 1).contiguous()
        keys = key.transpose(0, 1).contiguous()
        values = value.transpose(0, 1).contiguous()
        head_dim = queries.shape[-1]
        output = torch.empty_like(queries)
        described = Layer(
            num_heads=queries.shape[1],
            num_kv_heads=keys.shape[1],
            head_dim=head_dim,
            scaling=head_dim**-0.5 if variant.scaling is None else variant.scaling,
            window=variant.sliding_window or 0,
            keys=self._cache.keys[layer].data_ptr(),
            values=self._cache.values[layer].data_ptr(),
        )
        is_done = self._pool.kernels.functions.dedicate_attend(
            self._stack_handle,
            ctypes.byref(self.step),
            ctypes.byref(described),
            queries.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            output.data_ptr(),
        )
        if not is_done:
            raise MemoryError
        return output
