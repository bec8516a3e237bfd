"""Ownership of KV blocks: who holds which, which are free, which still have something to offer.

A block is in one of three states:

    free      holds nothing of worth
    idle      held by nobody, found by its hash: a free block too, but the last to be handed out, the longest idle first
    in use    held once or, if its content is shared, several times; findable by its hash or not

Knows neither tensors nor sequences nor what a hash is made of.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import NULL_BLOCK_ID

if TYPE_CHECKING:
    from collections.abc import Iterable


class BlockManager:
    """Hands out block ids 1..num_blocks and takes them back; id 0 is the null block and never leaves.

    The free block given back last is handed out first: a lightly loaded engine touches few pages of its cache.
    """

    def __init__(self, *, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"{num_blocks} blocks of {block_size} tokens hold nothing")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._free = list(range(num_blocks, NULL_BLOCK_ID, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._num_holders: dict[int, int] = {}
        self._by_hash: dict[bytes, int] = {}
        self._hashes: dict[int, bytes] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be handed out, the idle ones included."""
        return len(self._free) + len(self._idle)

    @property
    def num_idle(self) -> int:
        return len(self._idle)

    def count_blocks(self, num_tokens: int) -> int:
        """Blocks that `num_tokens` tokens fill, the last one perhaps in part."""
        return -(-num_tokens // self.block_size)

    def is_idle(self, block_id: int) -> bool:
        return block_id in self._idle

    def allocate(self, count: int) -> tuple[int, ...]:
        """Hands out `count` blocks; the caller has seen that so many are free."""
        assert count <= self.num_free, f"{count} blocks wanted, {self.num_free} free"
        return tuple(self._take_free() for _ in range(count))

    def _take_free(self) -> int:
        if self._free:
            block_id = self._free.pop()
        else:
            block_id, _ = self._idle.popitem(last=False)
            del self._by_hash[self._hashes.pop(block_id)]
        self._num_holders[block_id] = 1
        return block_id

    def hold(self, block_ids: Iterable[int]) -> None:
        """Adds a holder to blocks that are idle or in use."""
        for block_id in block_ids:
            if block_id in self._idle:
                del self._idle[block_id]
                self._num_holders[block_id] = 1
            else:
                self._num_holders[block_id] += 1

    def release(self, block_ids: tuple[int, ...]) -> None:
        """Takes a holder off each of a sequence's blocks, which come in the order of its tokens.

        The last one goes first: a prefix is of use without what follows it, and not the other way round.
        """
        for block_id in reversed(block_ids):
            num_holders = self._num_holders[block_id] - 1
            if num_holders:
                self._num_holders[block_id] = num_holders
                continue
            del self._num_holders[block_id]
            if block_id in self._hashes:
                self._idle[block_id] = None
            else:
                self._free.append(block_id)

    def find(self, block_hash: bytes) -> int | None:
        """The block with this content, if there is one."""
        return self._by_hash.get(block_hash)

    def publish(self, block_id: int, block_hash: bytes) -> None:
        """Lets a block in use be found; where another one has this content already, that one stays the one found."""
        assert block_id in self._num_holders, f"block {block_id} is held by nobody"
        if block_hash not in self._by_hash and block_id not in self._hashes:
            self._by_hash[block_hash] = block_id
            self._hashes[block_id] = block_hash

    def withdraw(self, block_ids: Iterable[int]) -> None:
        """Lets blocks in use not be found any more; who holds them keeps them."""
        for block_id in block_ids:
            assert block_id in self._num_holders, f"block {block_id} is held by nobody"
            block_hash = self._hashes.pop(block_id, None)
            if block_hash is not None:
                del self._by_hash[block_hash]

    def check_integrity(self) -> None:
        """Asserts that every block is in one state exactly and that hashes and blocks belong to each other."""
        free, idle, in_use = set(self._free), set(self._idle), set(self._num_holders)
        assert len(free) == len(self._free), "a block is free twice"
        assert len(free) + len(idle) + len(in_use) == self.num_blocks, "a block is lost or in two states"
        assert free | idle | in_use == set(range(1, self.num_blocks + 1)), "a block is lost"
        assert all(count > 0 for count in self._num_holders.values()), "a block in use is held by nobody"
        assert {block_hash: block_id for block_id, block_hash in self._hashes.items()} == self._by_hash
        assert idle <= self._hashes.keys() <= idle | in_use, "an idle block cannot be found, or a free one can"

    def is_held_as(self, block_ids: Iterable[int]) -> bool:
        """True if the blocks in use are those of `block_ids`, each with as many holders as it is named there."""
        return dict(Counter(block_ids)) == self._num_holders
