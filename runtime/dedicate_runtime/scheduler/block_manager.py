"""Ownership of KV blocks: which ids are free, which are in use. Knows neither tensors nor sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import NULL_BLOCK_ID

if TYPE_CHECKING:
    from collections.abc import Iterable


class BlockManager:
    """Hands out block ids 1..num_blocks and takes them back; id 0 is the null block and never leaves.

    The block given back last is handed out first: a lightly loaded engine touches few pages of its cache.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens hold nothing")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks, NULL_BLOCK_ID, -1))
        self._in_use: set[int] = set()

    @property
    def num_free(self) -> int:
        return len(self._free)

    def count_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` blocks out of the free list; the caller has seen that there are as many."""
        assert count <= len(self._free), f"{count} blocks wanted, {len(self._free)} free"
        taken = [self._free.pop() for _ in range(count)]
        self._in_use.update(taken)
        return taken

    def release(self, block_ids: Iterable[int]) -> None:
        """Gives blocks back; each must be in use."""
        for block_id in block_ids:
            self._in_use.remove(block_id)
            self._free.append(block_id)

    def check_integrity(self) -> None:
        """Asserts that every block is either free or in use, and exactly once."""
        free = set(self._free)
        assert len(free) == len(self._free), "a block is free twice"
        assert not free & self._in_use, f"blocks both free and in use: {free & self._in_use}"
        assert free | self._in_use == set(range(1, self.num_blocks + 1)), "a block is lost"

    def owns_exactly(self, block_ids: list[int]) -> bool:
        """True if `block_ids` are the blocks in use, each once."""
        return len(block_ids) == len(self._in_use) and set(block_ids) == self._in_use
