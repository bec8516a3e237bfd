"""Continuous batching under a token budget: who computes what in the next step.

Rules, in the order in which they apply to a step:

1. Every running sequence that needs one token gets it (decode first), oldest first. Where no block is free for the new
   token, the youngest running sequence is preempted: it gives its blocks back and computes its tokens again later, as
   far as nobody else took the blocks meanwhile.
2. Running sequences whose prompt is not through yet take what `budget` gives them of the rest, oldest first, in chunks.
3. Waiting sequences are admitted in order of arrival while budget, places and blocks last. The first that does not fit
   stops the admission, so none is overtaken; `admission` names the one exception, which costs nobody anything.

Why every request ends: blocks only ever go from younger sequences to older ones and the cache holds at least one
sequence of full length, so the oldest always gets on; and each sequence has a length limit.

One step may be scheduled while the one before is still in flight. It feeds tokens that are not known yet (`fed_by`) and
takes for granted that no sequence ends there except by length; rows of those that did are passed over when their result
comes in, and until then their blocks stay held, for the step writes to them. Whatever needs a result, such as penalties
or a preemption, is a reason not to schedule ahead.

Pure: no clock, no tensors, no logging; measured costs and tokens come from outside.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import BlockCopy, RowResult, ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import FinishReason, RequestId, SequenceOutput
from dedicate_runtime.core.sequence import Sequence, SequenceStatus
from dedicate_runtime.errors import QueueFullError, RequestError
from dedicate_runtime.scheduler.admission import Admission, WaitingQueue, get_arrival
from dedicate_runtime.scheduler.budget import MAX_STEPS_WITH_PREFILL, PrefillBudget
from dedicate_runtime.scheduler.limits import SchedulerLimits, StepLimit
from dedicate_runtime.scheduler.prefix_cache import PrefixCache
from dedicate_runtime.scheduler.rows import build_row

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

    from dedicate_runtime.core.request import Request
    from dedicate_runtime.scheduler.block_manager import BlockManager
    from dedicate_runtime.scheduler.budget import StepCosts

_RUNNING = SequenceStatus.RUNNING


@dataclass(slots=True, kw_only=True, eq=False)
class _Flight:
    """A step in flight: its sequences, one for each row, and what is theirs no more but must not be touched yet."""

    batch: ScheduledBatch
    sequences: list[Sequence]
    copying: list[Sequence]
    computing: list[bytes]
    held_blocks: list[tuple[int, ...]]


@dataclass(slots=True, kw_only=True, eq=False)
class _Plan:
    """What the next step is to hold, while it is being decided."""

    decoding: list[Sequence] = field(default_factory=list)
    prefilling: list[Sequence] = field(default_factory=list)
    chunks: list[tuple[Sequence, int]] = field(default_factory=list)
    computing: list[bytes] = field(default_factory=list)
    copying: list[Sequence] = field(default_factory=list)
    copies: list[BlockCopy] = field(default_factory=list)


class Scheduler:
    """Owns every unfinished sequence and the block ids they use."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager, *, has_prefix_cache: bool = True) -> None:
        if limits.max_num_batched_tokens < limits.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        if blocks.num_blocks < blocks.count_blocks(limits.max_model_len):
            raise ValueError("the KV cache holds less than one sequence of max_model_len tokens")
        self._limits = limits
        self._step_limit = StepLimit(limits)
        self._blocks = blocks
        self._prefixes = PrefixCache(blocks, is_enabled=has_prefix_cache)
        # In order of arrival, both; preemption takes the youngest.
        self._running: list[Sequence] = []
        self._waiting = WaitingQueue()
        self._by_id: dict[RequestId, Sequence] = {}
        self._flights: deque[_Flight] = deque()
        self._num_arrivals = 0
        self._num_steps_with_prefill = 0
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_free_blocks(self) -> int:
        return self._blocks.num_free

    @property
    def num_cached_blocks(self) -> int:
        """Free blocks that a prompt may still find its prefix in."""
        return self._blocks.num_idle

    @property
    def num_blocks(self) -> int:
        return self._blocks.num_blocks

    @property
    def num_prefix_query_tokens(self) -> int:
        return self._prefixes.num_query_tokens

    @property
    def num_prefix_hit_tokens(self) -> int:
        return self._prefixes.num_hit_tokens

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, requests: Items[Request]) -> None:
        """Queues all of `requests` or none.

        Raises:
            QueueFullError: running, waiting and new sequences together exceed `max_sequences`, or the prompts of
                waiting and new ones exceed `max_queued_tokens`; if none waits, prompts of any size are taken.
            RequestError: a request can never be served: too long, or its id is in use.
        """
        if len(self._by_id) + len(requests) > self._limits.max_sequences:
            raise QueueFullError(f"The queue is full: {len(self._by_id)} sequences are running or waiting.")
        max_queued_tokens = self._limits.max_queued_tokens
        if max_queued_tokens is not None and len(self._waiting):
            num_tokens = sum(len(request.prompt_token_ids) for request in requests)
            if self._waiting.num_tokens + num_tokens > max_queued_tokens:
                raise QueueFullError(f"The queue is full: {self._waiting.num_tokens} prompt tokens are waiting.")
        for request in requests:
            self._check_serviceable(request)
        for request in requests:
            sequence = Sequence(request, self._num_arrivals)
            self._num_arrivals += 1
            self._by_id[request.request_id] = sequence
            self._waiting.add(sequence)

    def _check_serviceable(self, request: Request) -> None:
        if request.request_id in self._by_id:
            raise RequestError(f"Request id {request.request_id} is in use.")
        if not request.prompt_token_ids:
            raise RequestError("The prompt is empty.")
        num_needed = len(request.prompt_token_ids) + min(request.sampling.max_tokens, 1)
        if num_needed > self._limits.max_model_len:
            raise RequestError(
                f"This model's maximum context length is {self._limits.max_model_len} tokens; the prompt has "
                f"{len(request.prompt_token_ids)}."
            )

    def abort(self, request_ids: Iterable[RequestId]) -> None:
        """Ends sequences without an output; ids that are unknown or ended already are passed over.

        Their blocks are free at once, or as soon as no step in flight writes to them.
        """
        for request_id in request_ids:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._finish(sequence)

    def schedule(self, costs: StepCosts | None = None) -> ScheduledBatch | None:
        """Decides the next step; None if there is nothing to do, or nothing before the step in flight is committed.

        At most one step may be in flight. Each batch is ended by `commit`, `fail` or `put_back`, in order.
        """
        assert len(self._flights) <= 1, "two steps are in flight already"
        if self._flights:
            if any(sequence.needs_history and sequence.num_unknown_tokens for sequence in self._running):
                return None
        else:
            while len(self._running) > self._step_limit.num_seqs:
                self._preempt(self._running[-1])
        plan = _Plan()
        if not self._plan_decodes(plan):
            return None
        self._plan_prefills(plan, costs)
        if not plan.decoding and not plan.chunks:
            return None
        return self._launch(plan)

    def _plan_decodes(self, plan: _Plan) -> bool:
        """Finds a slot for the next token of each decoding sequence, preempting from the young end.

        False if that takes blocks which the step in flight may still write to; what was found is kept.
        """
        # The list shrinks from its end while it is walked: whoever was preempted is not reached.
        for sequence in self._running:
            num_unfed_tokens = sequence.num_unfed_tokens
            if num_unfed_tokens > 1 or (num_unfed_tokens and not sequence.request.sampling.max_tokens):
                plan.prefilling.append(sequence)
                continue
            if not num_unfed_tokens or (sequence.num_unknown_tokens and self._is_at_its_end(sequence)):
                continue
            while sequence.status is _RUNNING and not self._has_slot(sequence):
                if self._blocks.num_free:
                    sequence.block_table += self._blocks.allocate(1)
                elif self._flights:
                    return False
                else:
                    self._preempt(self._running[-1])
            if sequence.status is _RUNNING:
                plan.decoding.append(sequence)
        return True

    def _has_slot(self, sequence: Sequence) -> bool:
        return sequence.num_fed_tokens < len(sequence.block_table) * self._blocks.block_size

    def _is_at_its_end(self, sequence: Sequence) -> bool:
        """True if it has all the tokens that it may have, those in flight included."""
        num_unknown_tokens = sequence.num_unknown_tokens
        return (
            sequence.num_output_tokens + num_unknown_tokens >= sequence.request.sampling.max_tokens
            or sequence.num_tokens + num_unknown_tokens >= self._limits.max_model_len
        )

    def _plan_prefills(self, plan: _Plan, costs: StepCosts | None) -> None:
        num_decoding = len(plan.decoding)
        if costs and num_decoding and self._num_steps_with_prefill == MAX_STEPS_WITH_PREFILL:
            self._num_steps_with_prefill = 0
            return
        budget = PrefillBudget(
            self._step_limit.num_tokens - num_decoding,
            costs=costs,
            floor=self._limits.min_prefill_tokens,
            is_decoding=num_decoding > 0,
            has_others_in_line=len(plan.prefilling) + len(self._waiting) > 1,
        )
        for sequence in plan.prefilling:
            self._plan_chunk(plan, sequence, budget)
        num_places = self._step_limit.num_seqs - len(self._running)
        admission = Admission(self._waiting, self._blocks, self._prefixes, num_places=num_places)
        while budget.is_open and (admitted := admission.admit_next(len(self._running))):
            sequence = admitted.sequence
            sequence.move_to(_RUNNING)
            insort(self._running, sequence, key=get_arrival)
            if admitted.copied_block is not None:
                plan.copies.append(BlockCopy(source=admitted.copied_block, target=sequence.block_table[-1]))
                plan.copying.append(sequence)
            self._plan_chunk(plan, sequence, budget)
        self._num_steps_with_prefill = self._num_steps_with_prefill + 1 if plan.chunks and num_decoding else 0

    def _plan_chunk(self, plan: _Plan, sequence: Sequence, budget: PrefillBudget) -> None:
        num_unfed_tokens = sequence.num_unfed_tokens
        num_tokens = budget.take(num_unfed_tokens)
        if not num_tokens:
            return
        plan.computing += self._prefixes.begin(sequence, num_tokens)
        if num_unfed_tokens == 1 and sequence.request.sampling.max_tokens:
            plan.decoding.append(sequence)
        else:
            plan.chunks.append((sequence, num_tokens))

    def _launch(self, plan: _Plan) -> ScheduledBatch:
        """Makes the plan a batch in flight."""
        plan.decoding.sort(key=_get_num_fed_tokens)
        sequences = []
        rows: list[ScheduledRow] = []
        for sequence, num_tokens in (*((sequence, 1) for sequence in plan.decoding), *plan.chunks):
            is_sampled = sequence.num_unfed_tokens == num_tokens and sequence.request.sampling.max_tokens > 0
            row = build_row(sequence, num_tokens, is_sampled=is_sampled)
            sequence.num_fed_tokens += num_tokens
            sequence.num_unknown_tokens += is_sampled
            sequence.row_index = len(rows)
            rows.append(row)
            sequences.append(sequence)
        batch = ScheduledBatch(rows=tuple(rows), num_decode_rows=len(plan.decoding), block_copies=tuple(plan.copies))
        flight = _Flight(
            batch=batch,
            sequences=sequences,
            copying=plan.copying,
            computing=plan.computing,
            # Whoever gave a copy must not be handed out before it is made.
            held_blocks=[(copy.source,) for copy in plan.copies],
        )
        self._flights.append(flight)
        return batch

    def commit(self, batch: ScheduledBatch, results: Items[RowResult]) -> list[SequenceOutput]:
        """Takes in what the oldest step in flight computed and returns what its clients get.

        Sequences that ended are free of blocks, but for those that a later step in flight writes to. Rows whose
        sequence has ended meanwhile are passed over.
        """
        flight = self._land(batch)
        self._step_limit.grow()
        outputs = []
        for sequence, row, result in zip(flight.sequences, batch.rows, results, strict=True):
            if sequence.status is _RUNNING:
                output = self._commit_row(sequence, row, result)
                if output is not None:
                    outputs.append(output)
        return outputs

    def _land(self, batch: ScheduledBatch) -> _Flight:
        """Takes the oldest step out of the air, which must be `batch`."""
        flight = self._flights.popleft()
        assert flight.batch is batch, "steps must be ended in order"
        self._prefixes.end(flight.computing)
        for block_ids in flight.held_blocks:
            self._blocks.release(block_ids)
        return flight

    def _commit_row(self, sequence: Sequence, row: ScheduledRow, result: RowResult) -> SequenceOutput | None:
        if result.error is not None:
            return self._fail_sequence(sequence, result.error)
        sequence.num_cached_tokens = row.end
        self._prefixes.publish(sequence)
        if result.prompt_logprobs:
            sequence.prompt_logprobs += result.prompt_logprobs
        if row.end < len(sequence.token_ids):
            return None
        is_first_output = len(sequence.token_ids) == sequence.num_prompt_tokens
        if is_first_output:
            self.num_prompt_tokens += sequence.num_prompt_tokens
        token_ids: tuple[int, ...] = ()
        if row.is_sampled:
            assert result.token_id is not None, "a sampled row brought no token"
            token_ids = (result.token_id,)
            sequence.token_ids.append(result.token_id)
            sequence.num_unknown_tokens -= 1
            self.num_generated_tokens += 1
        finish_reason = self._find_finish_reason(sequence)
        if finish_reason is not None:
            self._finish(sequence)
        return SequenceOutput(
            request_id=row.request_id,
            token_ids=token_ids,
            logprobs=() if result.logprobs is None else (result.logprobs,),
            prompt_logprobs=tuple(sequence.prompt_logprobs) if is_first_output else (),
            finish_reason=finish_reason,
        )

    def _find_finish_reason(self, sequence: Sequence) -> FinishReason | None:
        sampling = sequence.request.sampling
        num_tokens = len(sequence.token_ids)
        num_output_tokens = num_tokens - sequence.num_prompt_tokens
        if num_output_tokens > sampling.min_tokens and sequence.token_ids[-1] in sampling.end_ids:
            return FinishReason.STOP
        if num_output_tokens >= sampling.max_tokens or num_tokens >= self._limits.max_model_len:
            return FinishReason.LENGTH
        return None

    def fail(self, batch: ScheduledBatch, sentence: str) -> list[SequenceOutput]:
        """Ends every sequence of the oldest step in flight, which could not be computed."""
        sequences = self._land(batch).sequences
        return [self._fail_sequence(sequence, sentence) for sequence in sequences if sequence.status is _RUNNING]

    def put_back(self, batch: ScheduledBatch, sentence: str) -> list[SequenceOutput]:
        """Undoes all steps in flight; the oldest, `batch`, did not fit into memory, so later ones hold half of it.

        None of them may still run. A batch of one token that did not fit never will: its sequence ends.
        """
        undone = [self._land(flight.batch) for flight in tuple(self._flights)]
        for sequence in self._running:
            sequence.forget_steps()
        for flight in undone:
            for sequence in flight.copying:
                if sequence.status is _RUNNING:
                    # Nobody knows whether its copy was made.
                    self._preempt(sequence)
        if batch.num_tokens > 1:
            self._step_limit.shrink(batch.num_tokens)
            return []
        self._step_limit.restore()
        sequence = undone[0].sequences[0]
        return [] if sequence.status is SequenceStatus.FINISHED else [self._fail_sequence(sequence, sentence)]

    def _fail_sequence(self, sequence: Sequence, sentence: str) -> SequenceOutput:
        self._prefixes.withdraw(sequence)
        self._finish(sequence)
        return SequenceOutput(request_id=sequence.request.request_id, finish_reason=FinishReason.ERROR, error=sentence)

    def _finish(self, sequence: Sequence) -> None:
        was_running = sequence.status is _RUNNING
        sequence.move_to(SequenceStatus.FINISHED)
        if was_running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release_blocks(sequence)
        del self._by_id[sequence.request.request_id]

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to the queue. It has no row in flight, or its blocks could not be reused."""
        self._running.remove(sequence)
        sequence.move_to(SequenceStatus.WAITING)
        self._waiting.add(sequence)
        self._release_blocks(sequence)
        if sequence.wants_prompt_logprobs:
            sequence.forget_prompt_logprobs()
        self.num_preemptions += 1

    def _release_blocks(self, sequence: Sequence) -> None:
        if self._flights:
            self._flights[-1].held_blocks.append(sequence.block_table)
        else:
            self._blocks.release(sequence.block_table)
        sequence.forget_blocks()

    def check_integrity(self) -> None:
        """Asserts that each block has the holders that it counts and each sequence is where its status says."""
        self._blocks.check_integrity()
        self._waiting.check_integrity()
        owned = [block_id for sequence in self._running for block_id in sequence.block_table]
        held = [block_id for flight in self._flights for block_ids in flight.held_blocks for block_id in block_ids]
        assert self._blocks.is_held_as(owned + held), "blocks in use are not those of sequences and steps in flight"
        for sequence in self._running:
            self._check_running(sequence)
        for sequence in self._waiting:
            assert sequence.status is SequenceStatus.WAITING, sequence
            assert not sequence.block_table, sequence
            assert sequence.num_cached_tokens == sequence.num_fed_tokens == sequence.num_unknown_tokens == 0, sequence
        arrivals = [sequence.arrival for sequence in self._running]
        assert arrivals == sorted(set(arrivals)), "running sequences are out of order"
        unfinished = [sequence.request.request_id for sequence in (*self._running, *self._waiting)]
        assert len(unfinished) == len(self._by_id), "a sequence is in two places"
        assert set(unfinished) == set(self._by_id), "a sequence is lost"
        assert len(self._running) <= self._limits.max_num_seqs, "too many sequences run"
        assert len(self._by_id) <= self._limits.max_sequences, "the queue overflows"
        if not self._flights:
            self._prefixes.check_idle()

    def _check_running(self, sequence: Sequence) -> None:
        block_size = self._blocks.block_size
        assert sequence.status is _RUNNING, sequence
        assert len(set(sequence.block_table)) == len(sequence.block_table), sequence
        assert sequence.num_fed_tokens <= len(sequence.block_table) * block_size, sequence
        assert sequence.num_published_blocks * block_size <= sequence.num_cached_tokens, sequence
        assert sequence.num_cached_tokens <= sequence.num_fed_tokens, sequence
        assert sequence.num_fed_tokens <= sequence.num_tokens + sequence.num_unknown_tokens, sequence
        if not self._flights:
            assert sequence.num_cached_tokens == sequence.num_fed_tokens < sequence.num_tokens, sequence
            assert sequence.num_unknown_tokens == 0, sequence


def _get_num_fed_tokens(sequence: Sequence) -> int:
    return sequence.num_fed_tokens
