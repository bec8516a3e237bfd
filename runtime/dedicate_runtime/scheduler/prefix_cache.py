"""Which blocks a sequence need not compute, because another one has computed or is computing the same.

A full block is known by the hash of its tokens and of all before them, so that equal hashes mean equal keys and values.
The hash is 128 bits of BLAKE2b: a collision is as likely as a broken memory cell going unnoticed and can be made by
nobody, so the tokens are not compared.

Blocks are offered once results say that they are computed, never on the promise; those of a sequence that fails are not
offered any more, its earlier ones neither: nobody knows since when they were wrong. What is being computed in a step in
flight is remembered, so that equal prompts that arrive together wait for the first of them instead of all computing the
same; a block is only waited for while a step in flight works on it.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence as Items

    from dedicate_runtime.core.sequence import Sequence
    from dedicate_runtime.scheduler.block_manager import BlockManager

_HASH_BYTES = 16

ROOT_HASH = bytes(_HASH_BYTES)
"""What the first block follows. Whatever else changes keys and values, such as an adapter, wants a root of its own."""


def hash_blocks(token_ids: Items[int], block_size: int, *, previous: bytes = ROOT_HASH) -> list[bytes]:
    """One hash for each full block of `token_ids`, which follow the block with the hash `previous`."""
    hashes = []
    for start in range(0, len(token_ids) - block_size + 1, block_size):
        content = array("I", token_ids[start : start + block_size]).tobytes()
        previous = blake2b(previous + content, digest_size=_HASH_BYTES).digest()
        hashes.append(previous)
    return hashes


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixMatch:
    """What of a sequence is there. `is_being_computed`: the block after these is worked on by a step in flight."""

    block_ids: tuple[int, ...] = ()
    is_being_computed: bool = False


class PrefixCache:
    """Finds, offers and withdraws the blocks of sequences. If not `is_enabled`, nothing is ever found."""

    def __init__(self, blocks: BlockManager, *, is_enabled: bool) -> None:
        self._blocks = blocks
        self._is_enabled = is_enabled
        self._num_workers: Counter[bytes] = Counter()
        self.num_query_tokens = 0
        self.num_hit_tokens = 0

    def match(self, sequence: Sequence) -> PrefixMatch:
        """The longest run of leading blocks that are there; none for who needs the logits of each prompt token."""
        if not self._is_enabled or sequence.wants_prompt_logprobs:
            return PrefixMatch()
        block_ids: list[int] = []
        for block_hash in self._hash(sequence):
            block_id = self._blocks.find(block_hash)
            if block_id is None:
                return PrefixMatch(block_ids=tuple(block_ids), is_being_computed=block_hash in self._num_workers)
            block_ids.append(block_id)
        return PrefixMatch(block_ids=tuple(block_ids))

    def _hash(self, sequence: Sequence) -> list[bytes]:
        """Hashes of all full blocks of the tokens that are known."""
        hashes = sequence.block_hashes
        block_size = self._blocks.block_size
        num_hashed_tokens = len(hashes) * block_size
        if num_hashed_tokens + block_size <= sequence.num_tokens:
            previous = hashes[-1] if hashes else ROOT_HASH
            hashes += hash_blocks(sequence.token_ids[num_hashed_tokens:], block_size, previous=previous)
        return hashes

    def count_admission(self, sequence: Sequence) -> None:
        """Counts what was asked and found; once a sequence, or preemptions would make the cache look good."""
        if self._is_enabled and not sequence.has_been_admitted and not sequence.wants_prompt_logprobs:
            self.num_query_tokens += sequence.num_tokens
            self.num_hit_tokens += sequence.num_cached_tokens

    def begin(self, sequence: Sequence, num_tokens: int) -> list[bytes]:
        """Notes that the next `num_tokens` of a prefill are computed; returns what `end` needs when they are done.

        A block that is computed in part counts as well: the next step goes on with it.
        """
        if not self._is_enabled:
            return []
        block_size = self._blocks.block_size
        start = sequence.num_fed_tokens
        touched = self._hash(sequence)[start // block_size : -(-(start + num_tokens) // block_size)]
        self._num_workers.update(touched)
        return touched

    def end(self, block_hashes: list[bytes]) -> None:
        """Notes that a step is over, however it ended."""
        for block_hash in block_hashes:
            if self._num_workers[block_hash] > 1:
                self._num_workers[block_hash] -= 1
            else:
                del self._num_workers[block_hash]

    def publish(self, sequence: Sequence) -> None:
        """Offers the sequence's blocks that have become full of cached tokens."""
        num_full = sequence.num_cached_tokens // self._blocks.block_size
        if num_full == sequence.num_published_blocks or not self._is_enabled:
            return
        hashes = self._hash(sequence)
        for index in range(sequence.num_published_blocks, num_full):
            self._blocks.publish(sequence.block_table[index], hashes[index])
        sequence.num_published_blocks = num_full

    def withdraw(self, sequence: Sequence) -> None:
        """Offers none of a failed sequence's blocks any more, those that it shares neither."""
        self._blocks.withdraw(sequence.block_table)

    def check_idle(self) -> None:
        """Asserts that nothing is waited for while nothing is in flight."""
        assert not self._num_workers, "blocks are said to be computed and no step is in flight"
