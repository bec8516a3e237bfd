"""The KV cache as the native kernels read it: blocks of 16 tokens, keys transposed within each."""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import TYPE_CHECKING

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
    """Memory that the kernel zeroes page by page on first touch, in large pages: attention reads it in small pieces."""
    memory = mmap.mmap(-1, math.prod(shape) * 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # A kernel without large pages says no, and that is all.
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(shape)
