"""The queue of sequences that wait for their turn, and who of them may run.

Admission is in order of rank: turns are shared fairly among clients (see `fairness`), and those of one client come in
order of arrival. One alone lets others pass: who waits for a prefix that a step in flight computes (see
`prefix_cache`). It keeps its place and its blocks meanwhile, so that whoever passes takes only what it leaves; it is
looked at first in every step, and waits for no longer than the step in flight computes what it would else compute
itself. So being passed costs it nothing, and it cannot starve.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dedicate_runtime.core.sequence import Sequence
    from dedicate_runtime.scheduler.block_manager import BlockManager
    from dedicate_runtime.scheduler.prefix_cache import PrefixCache


def get_rank(sequence: Sequence) -> tuple[int, int]:
    """The order in which sequences are served."""
    return sequence.rank


class WaitingQueue:
    """Sequences in order of rank. `num_tokens` is what their prompts weigh together."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __getitem__(self, index: int) -> Sequence:
        return self._sequences[index]

    def add(self, sequence: Sequence) -> None:
        """Puts a sequence where its rank puts it: a preempted one before all that arrived since it began."""
        insort(self._sequences, sequence, key=get_rank)
        self.num_tokens += sequence.num_prompt_tokens

    def remove(self, sequence: Sequence) -> None:
        self._sequences.remove(sequence)
        self.num_tokens -= sequence.num_prompt_tokens

    def check_integrity(self) -> None:
        """Asserts that the order is that of ranks and the weight right."""
        ranks = [sequence.rank for sequence in self._sequences]
        assert ranks == sorted(set(ranks)), "waiting sequences are out of order"
        assert self.num_tokens == sum(sequence.num_prompt_tokens for sequence in self._sequences)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admitted:
    """A sequence that has blocks now. `copied_block`, held for its sake, is to be copied to the last of them."""

    sequence: Sequence
    copied_block: int | None
    is_first: bool
    """It has not run before."""


class Admission:
    """One step's walk along the queue: gives out places and blocks until either is used up."""

    def __init__(self, waiting: WaitingQueue, blocks: BlockManager, prefixes: PrefixCache, *, num_places: int) -> None:
        self._waiting = waiting
        self._blocks = blocks
        self._prefixes = prefixes
        self._num_places = num_places
        self._num_passed = 0
        self._num_reserved_blocks = 0

    def admit_next(self, num_running: int) -> Admitted | None:
        """Takes the first that may run out of the queue; None if nobody may any more."""
        while self._num_places > 0 and self._num_passed < len(self._waiting):
            sequence = self._waiting[self._num_passed]
            match = self._prefixes.match(sequence)
            self._num_places -= 1
            if match.is_being_computed:
                self._num_passed += 1
                self._num_reserved_blocks += self._blocks.count_blocks(sequence.num_tokens)
                continue
            # One block for each running sequence is kept back: admission must not be what causes the next preemption.
            num_spare = self._blocks.num_free - num_running - self._num_reserved_blocks
            admitted = self._give_blocks(sequence, match.block_ids, num_spare)
            if admitted is None:
                self._num_places = 0
                break
            self._waiting.remove(sequence)
            self._prefixes.count_admission(sequence)
            sequence.has_been_admitted = True
            return admitted
        return None

    def _give_blocks(self, sequence: Sequence, shared: tuple[int, ...], num_spare: int) -> Admitted | None:
        """Gives `sequence` the blocks of `shared` and new ones after them, if `num_spare` are enough.

        Its last token has to be fed in any case, for the logits. If its block is among the shared ones, that is copied
        for it, or computed again where there is no room for original and copy.
        """
        blocks = self._blocks
        copied_block = None
        num_cached_tokens = len(shared) * blocks.block_size
        if num_cached_tokens == sequence.num_tokens:
            shared, copied_block = shared[:-1], shared[-1] if blocks.block_size > 1 else None
            num_cached_tokens -= 1
        num_new = blocks.count_blocks(sequence.num_tokens) - len(shared)
        num_taken = num_new + sum(blocks.is_idle(block_id) for block_id in shared)
        if num_taken > num_spare:
            return None
        if copied_block is not None and num_taken + blocks.is_idle(copied_block) > num_spare:
            copied_block = None
            num_cached_tokens = len(shared) * blocks.block_size
        blocks.hold(shared)
        if copied_block is not None:
            blocks.hold((copied_block,))
        sequence.block_table = shared + blocks.allocate(num_new)
        sequence.num_cached_tokens = sequence.num_fed_tokens = num_cached_tokens
        sequence.num_published_blocks = len(shared)
        return Admitted(sequence=sequence, copied_block=copied_block, is_first=not sequence.has_been_admitted)
