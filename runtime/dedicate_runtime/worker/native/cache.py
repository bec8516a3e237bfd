"""The KV cache as the native kernels read it: blocks of 16 tokens, keys transposed within each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from dedicate_runtime.worker.native.library import BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dedicate_runtime.core.batch import BlockCopy
    from dedicate_runtime.worker.kv_cache import LayerShape


class NativeKVCache:
    """Blocks of all layers, float32; block 0 is the null block.

    keys: (num_blocks + 1, num_kv_heads, key_dim, 16), values: (num_blocks + 1, num_kv_heads, 16, value_dim).
    """

    block_size = BLOCK_TOKENS

    def __init__(self, shapes: Mapping[int, LayerShape], *, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.keys = {
            index: _make_zeros(num_blocks + 1, shape.num_kv_heads, shape.key_dim, BLOCK_TOKENS)
            for index, shape in shapes.items()
        }
        self.values = {
            index: _make_zeros(num_blocks + 1, shape.num_kv_heads, BLOCK_TOKENS, shape.value_dim)
            for index, shape in shapes.items()
        }

    def copy_blocks(self, copies: Sequence[BlockCopy]) -> None:
        """Copies whole blocks in all layers."""
        sources = [copy.source for copy in copies]
        targets = [copy.target for copy in copies]
        for blocks in (*self.keys.values(), *self.values.values()):
            blocks[targets] = blocks[sources]


def _make_zeros(*shape: int) -> torch.Tensor:
    # numpy leaves the zeroing to the kernel, page by page on first touch; torch would touch gigabytes here and now.
    return torch.from_numpy(np.zeros(math.prod(shape), dtype=np.float32)).view(shape)
