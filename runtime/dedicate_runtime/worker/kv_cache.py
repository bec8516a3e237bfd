"""Keys and values of every cached token, in fixed blocks of slots: one pair of tensors a layer.

| slots                                                    | who writes      | who reads                     |
|----------------------------------------------------------|-----------------|-------------------------------|
| [0, block_size), the null block                          | nobody: zeros   | padding                       |
| [b * block_size, (b + 1) * block_size), b of a sequence  | that sequence   | that sequence, up to its length |

Padding reads the null block and never the tail of a real one: what an earlier owner left there may be infinite, and
zero times infinity is not zero.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dedicate_runtime.core.batch import BlockCopy


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What one attention layer stores for a token."""

    num_kv_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        return self.num_kv_heads * (self.key_dim + self.value_dim)


def count_bytes_per_token(shapes: Mapping[int, LayerShape], dtype: torch.dtype) -> int:
    """Bytes that one token takes in all layers together."""
    return sum(shape.num_elements for shape in shapes.values()) * dtype.itemsize


class BlockCache(Protocol):
    """What a runner needs to know of a cache, however its blocks are laid out."""

    @property
    def block_size(self) -> int: ...

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks in all layers."""


def _make_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy leaves the zeroing to the kernel, page by page on first touch; torch would touch gigabytes here and now.
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


class KVCache:
    """Slots of all layers. `shapes` maps a layer's index in the model to what it stores."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        num_slots = (num_blocks + 1) * block_size

        def make_slots(num_heads: int, dim: int) -> torch.Tensor:
            return _make_zeros((num_slots, num_heads, dim), dtype, device)

        self._keys = {index: make_slots(shape.num_kv_heads, shape.key_dim) for index, shape in shapes.items()}
        self._values = {index: make_slots(shape.num_kv_heads, shape.value_dim) for index, shape in shapes.items()}

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks in all layers."""
        sources = [copy.source for copy in copies]
        targets = [copy.target for copy in copies]
        for slots in (*self._keys.values(), *self._values.values()):
            blocks = slots.view(self.num_blocks + 1, self.block_size, *slots.shape[1:])
            blocks[targets] = blocks[sources]

    def store(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Writes `keys` and `values`, (num_tokens, num_kv_heads, dim) each, to `slots`, (num_tokens,) int64."""
        self._keys[layer].index_copy_(0, slots, keys)
        self._values[layer].index_copy_(0, slots, values)

    def gather(self, layer: int, slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies out the keys and values of `slots`, (n,) int64: (n, num_kv_heads, dim) each."""
        return self._keys[layer].index_select(0, slots), self._values[layer].index_select(0, slots)
