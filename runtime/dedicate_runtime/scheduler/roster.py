"""Who runs, who waits, what is in flight, and which blocks each of them holds.

A block is held by every running sequence that has it in its table, and by steps in flight: those that copy from it, and
those that may still write to it although its sequence has ended.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dedicate_runtime.core.sequence import Sequence, SequenceStatus
from dedicate_runtime.scheduler.admission import Admission, WaitingQueue, get_rank
from dedicate_runtime.scheduler.fairness import FairOrder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dedicate_runtime.core.batch import ScheduledBatch
    from dedicate_runtime.core.request import Request, RequestId
    from dedicate_runtime.scheduler.admission import Admitted
    from dedicate_runtime.scheduler.block_manager import BlockManager
    from dedicate_runtime.scheduler.prefix_cache import PrefixCache


@dataclass(slots=True, kw_only=True, eq=False)
class Flight:
    """A step in flight: its sequences, one for each row, and what has to be undone or freed when it has ended."""

    batch: ScheduledBatch
    sequences: list[Sequence]
    copying: list[Sequence]
    """Those whose last block is copied from a shared one."""
    computing: list[bytes]
    """Hashes of the blocks that are computed, for the prefix cache."""
    held_blocks: list[tuple[int, ...]] = field(default_factory=list)


class Roster:
    """Every unfinished sequence. `running` is in order of rank; read it, change it through the methods alone."""

    def __init__(self, blocks: BlockManager, prefixes: PrefixCache) -> None:
        self._blocks = blocks
        self._prefixes = prefixes
        self._by_id: dict[RequestId, Sequence] = {}
        self._flights: deque[Flight] = deque()
        self._num_arrivals = 0
        self._fairness = FairOrder()
        self.num_preemptions = 0
        self.running: list[Sequence] = []
        self.waiting = WaitingQueue()

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def num_flights(self) -> int:
        return len(self._flights)

    def find(self, request_id: RequestId) -> Sequence | None:
        return self._by_id.get(request_id)

    def add(self, request: Request) -> None:
        """Queues one more sequence."""
        sequence = Sequence(request, self._num_arrivals)
        self._num_arrivals += 1
        self._by_id[request.request_id] = sequence
        self._fairness.enter(sequence)
        self.waiting.add(sequence)

    def admit(self, num_places: int) -> Iterator[Admitted]:
        """Moves waiting sequences to running, one at each turn, until nobody may follow."""
        admission = Admission(self.waiting, self._blocks, self._prefixes, num_places=num_places)
        while (admitted := admission.admit_next(len(self.running))) is not None:
            admitted.sequence.move_to(SequenceStatus.RUNNING)
            if admitted.is_first:
                self._fairness.begin(admitted.sequence)
            insort(self.running, admitted.sequence, key=get_rank)
            yield admitted

    def give_slot(self, sequence: Sequence) -> bool:
        """Makes room for the next token of a running sequence; False if no block is free."""
        if sequence.num_fed_tokens == len(sequence.block_table) * self._blocks.block_size:
            if not self._blocks.num_free:
                return False
            sequence.block_table += self._blocks.allocate(1)
        return True

    def preempt_youngest(self) -> None:
        """Sends the youngest running sequence back to the queue; nothing may be in flight that writes to its blocks."""
        self.preempt(self.running[-1])

    def preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to the queue; nothing may be in flight that writes to its blocks."""
        assert not self._flights, "a sequence is preempted while its step is in flight"
        self.running.remove(sequence)
        sequence.move_to(SequenceStatus.WAITING)
        self.waiting.add(sequence)
        self._release_blocks(sequence)
        if sequence.wants_prompt_logprobs:
            sequence.forget_prompt_logprobs()
        self.num_preemptions += 1

    def finish(self, sequence: Sequence, *, is_suspect: bool = False) -> None:
        """Lets go of a sequence; what it has cached is offered to nobody if it `is_suspect`."""
        if is_suspect:
            self._prefixes.withdraw(sequence)
        was_running = sequence.status is SequenceStatus.RUNNING
        sequence.move_to(SequenceStatus.FINISHED)
        if was_running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release_blocks(sequence)
        self._fairness.settle(sequence)
        del self._by_id[sequence.request.request_id]

    def _release_blocks(self, sequence: Sequence) -> None:
        if self._flights:
            self._flights[-1].held_blocks.append(sequence.block_table)
        else:
            self._blocks.release(sequence.block_table)
        sequence.forget_blocks()

    def launch(self, flight: Flight) -> None:
        """Puts a step behind those in flight."""
        # Admission has held the originals of copies for this step: they must not be handed out before it is done.
        flight.held_blocks += [(copy.source,) for copy in flight.batch.block_copies]
        self._flights.append(flight)

    def land(self, batch: ScheduledBatch) -> Flight:
        """Takes the oldest step in flight, which must be `batch`, and frees what was held for it alone."""
        flight = self._flights.popleft()
        assert flight.batch is batch, "steps must be ended in order"
        self._prefixes.end(flight.computing)
        for block_ids in flight.held_blocks:
            self._blocks.release(block_ids)
        return flight

    def undo_flights(self) -> list[Flight]:
        """Puts every sequence where it was before the steps in flight, none of which may still run."""
        undone = [self.land(flight.batch) for flight in tuple(self._flights)]
        for sequence in self.running:
            sequence.forget_steps()
        for flight in undone:
            for sequence in flight.copying:
                if sequence.status is SequenceStatus.RUNNING:
                    # Nobody knows whether its copy was made.
                    self.preempt(sequence)
        return undone

    def check_integrity(self) -> None:
        """Asserts that each block has the holders that it counts and each sequence is where its status says."""
        self._blocks.check_integrity()
        self.waiting.check_integrity()
        owned = [block_id for sequence in self.running for block_id in sequence.block_table]
        held = [block_id for flight in self._flights for block_ids in flight.held_blocks for block_id in block_ids]
        assert self._blocks.is_held_as(owned + held), "blocks in use are not those of sequences and steps in flight"
        for sequence in self.running:
            self._check_running(sequence)
        for sequence in self.waiting:
            assert sequence.status is SequenceStatus.WAITING, sequence
            assert not sequence.block_table, sequence
            assert sequence.num_cached_tokens == sequence.num_fed_tokens == sequence.num_unknown_tokens == 0, sequence
        ranks = [sequence.rank for sequence in self.running]
        assert ranks == sorted(set(ranks)), "running sequences are out of order"
        self._fairness.check_integrity(self._by_id.values())
        unfinished = [sequence.request.request_id for sequence in (*self.running, *self.waiting)]
        assert len(unfinished) == len(self._by_id), "a sequence is in two places"
        assert set(unfinished) == set(self._by_id), "a sequence is lost"
        if not self._flights:
            self._prefixes.check_idle()

    def _check_running(self, sequence: Sequence) -> None:
        block_size = self._blocks.block_size
        assert sequence.status is SequenceStatus.RUNNING, sequence
        assert len(set(sequence.block_table)) == len(sequence.block_table), sequence
        assert sequence.num_fed_tokens <= len(sequence.block_table) * block_size, sequence
        assert sequence.num_published_blocks * block_size <= sequence.num_cached_tokens, sequence
        assert sequence.num_cached_tokens <= sequence.num_fed_tokens, sequence
        assert sequence.num_fed_tokens <= sequence.num_tokens + sequence.num_unknown_tokens, sequence
        if not self._flights:
            assert sequence.num_cached_tokens == sequence.num_fed_tokens < sequence.num_tokens, sequence
            assert sequence.num_unknown_tokens == 0, sequence
