"""Continuous batching under a token budget: who computes what in the next step.

Rules, in the order in which they apply to a step:

1. Every running sequence that needs one token gets it (decode first), oldest first. Where no block is free for the new
   token, the youngest running sequence is preempted: it gives its blocks back and computes its tokens again later, as
   far as nobody else took the blocks meanwhile.
2. Running sequences whose prompt is not through yet take what `budget` gives them of the rest, oldest first, in chunks.
3. Waiting sequences are admitted oldest first while budget, places and blocks last. The first that does not fit stops
   the admission, so none is overtaken; `admission` names the one exception, which costs nobody anything.

Old and young are meant by rank: turns are shared fairly among clients, and those of one client follow their arrival
(see `fairness`). Whoever arrives is younger than all who have begun.

Why every request ends: blocks only ever go from younger sequences to older ones and the cache holds at least one
sequence of full length, so the oldest always gets on; each sequence has a length limit; and of those that arrive later
only so many become older as there are clients, and each client only until it has had its share.

One step may be scheduled while the one before is still in flight. It feeds tokens that are not known yet (`fed_by`) and
takes for granted that no sequence ends there except by length; rows of those that did are passed over when their result
comes in, and until then their blocks stay held, for the step writes to them. Whatever needs a result, such as penalties
or a preemption, is a reason not to schedule ahead.

Pure: no clock, no tensors, no logging; measured costs and tokens come from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import RowResult, ScheduledBatch, ScheduledRow
from dedicate_runtime.core.request import FinishReason, RequestId, SequenceOutput
from dedicate_runtime.core.sequence import Sequence, SequenceStatus
from dedicate_runtime.errors import QueueFullError, RequestError
from dedicate_runtime.scheduler.budget import MAX_STEPS_WITH_PREFILL, PrefillBudget
from dedicate_runtime.scheduler.limits import SchedulerLimits, StepLimit
from dedicate_runtime.scheduler.plan import StepPlan
from dedicate_runtime.scheduler.prefix_cache import PrefixCache
from dedicate_runtime.scheduler.roster import Roster

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

    from dedicate_runtime.core.request import Request
    from dedicate_runtime.scheduler.block_manager import BlockManager
    from dedicate_runtime.scheduler.budget import StepCosts

_RUNNING = SequenceStatus.RUNNING


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
        self._roster = Roster(blocks, self._prefixes)
        self._num_steps_with_prefill = 0
        self.num_prompt_tokens = 0
        self.num_generated_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self._roster.running)

    @property
    def num_waiting(self) -> int:
        return len(self._roster.waiting)

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
    def num_preemptions(self) -> int:
        return self._roster.num_preemptions

    @property
    def num_prefix_query_tokens(self) -> int:
        return self._prefixes.num_query_tokens

    @property
    def num_prefix_hit_tokens(self) -> int:
        return self._prefixes.num_hit_tokens

    @property
    def has_work(self) -> bool:
        return len(self._roster) > 0

    def add(self, requests: Items[Request]) -> None:
        """Queues all of `requests` or none.

        Raises:
            QueueFullError: running, waiting and new sequences together exceed `max_sequences`, or the prompts of
                waiting and new ones exceed `max_queued_tokens`; if none waits, prompts of any size are taken.
            RequestError: a request can never be served: too long, or its id is in use.
        """
        roster, limits = self._roster, self._limits
        if len(roster) + len(requests) > limits.max_sequences:
            raise QueueFullError(f"The queue is full: {len(roster)} sequences are running or waiting.")
        if limits.max_queued_tokens is not None and len(roster.waiting):
            num_tokens = sum(len(request.prompt_token_ids) for request in requests)
            if roster.waiting.num_tokens + num_tokens > limits.max_queued_tokens:
                raise QueueFullError(f"The queue is full: {roster.waiting.num_tokens} prompt tokens are waiting.")
        for request in requests:
            self._check_serviceable(request)
        for request in requests:
            roster.add(request)

    def _check_serviceable(self, request: Request) -> None:
        if self._roster.find(request.request_id) is not None:
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
            sequence = self._roster.find(request_id)
            if sequence is not None:
                self._roster.finish(sequence)

    def schedule(self, costs: StepCosts | None = None) -> ScheduledBatch | None:
        """Decides the next step; None if there is nothing to do, or nothing before the step in flight is committed.

        At most one step may be in flight. Each batch is ended by `commit`, `fail` or `put_back`, in order.
        """
        roster = self._roster
        assert roster.num_flights <= 1, "two steps are in flight already"
        if roster.num_flights:
            if any(sequence.needs_history and sequence.num_unknown_tokens for sequence in roster.running):
                return None
        else:
            while len(roster.running) > self._step_limit.num_seqs:
                roster.preempt_youngest()
        plan = StepPlan()
        if not self._plan_decodes(plan):
            return None
        self._plan_prefills(plan, costs)
        flight = plan.build_flight()
        if flight is None:
            return None
        roster.launch(flight)
        return flight.batch

    def _plan_decodes(self, plan: StepPlan) -> bool:
        """Finds a slot for the next token of each decoding sequence, preempting from the young end.

        False if that takes blocks which the step in flight may still write to; what was found is kept.
        """
        roster = self._roster
        # The list shrinks from its end while it is walked: whoever was preempted is not reached.
        for sequence in roster.running:
            num_unfed_tokens = sequence.num_unfed_tokens
            if num_unfed_tokens > 1 or (num_unfed_tokens and not sequence.request.sampling.max_tokens):
                plan.prefilling.append(sequence)
                continue
            if not num_unfed_tokens or (sequence.num_unknown_tokens and self._is_at_its_end(sequence)):
                continue
            while sequence.status is _RUNNING and not roster.give_slot(sequence):
                if roster.num_flights:
                    return False
                roster.preempt_youngest()
            if sequence.status is _RUNNING:
                plan.decoding.append(sequence)
        return True

    def _is_at_its_end(self, sequence: Sequence) -> bool:
        """True if it has all the tokens that it may have, those in flight included."""
        num_unknown_tokens = sequence.num_unknown_tokens
        return (
            sequence.num_output_tokens + num_unknown_tokens >= sequence.request.sampling.max_tokens
            or sequence.num_tokens + num_unknown_tokens >= self._limits.max_model_len
        )

    def _plan_prefills(self, plan: StepPlan, costs: StepCosts | None) -> None:
        num_decoding = len(plan.decoding)
        if costs and num_decoding and self._num_steps_with_prefill >= MAX_STEPS_WITH_PREFILL:
            self._num_steps_with_prefill = 0
            return
        budget = PrefillBudget(
            self._step_limit.num_tokens - num_decoding,
            costs=costs,
            floor=self._limits.min_prefill_tokens,
            is_decoding=num_decoding > 0,
            has_others_in_line=len(plan.prefilling) + self.num_waiting > 1,
        )
        for sequence in plan.prefilling:
            self._plan_chunk(plan, sequence, budget)
        admissions = self._roster.admit(self._step_limit.num_seqs - self.num_running)
        while budget.is_open and (admitted := next(admissions, None)) is not None:
            plan.add_copy(admitted)
            self._plan_chunk(plan, admitted.sequence, budget)
        self._num_steps_with_prefill = self._num_steps_with_prefill + 1 if plan.chunks and num_decoding else 0

    def _plan_chunk(self, plan: StepPlan, sequence: Sequence, budget: PrefillBudget) -> None:
        num_tokens = budget.take(sequence.num_unfed_tokens)
        if num_tokens:
            plan.computing += self._prefixes.begin(sequence, num_tokens)
            plan.add_chunk(sequence, num_tokens)

    def commit(self, batch: ScheduledBatch, results: Items[RowResult]) -> list[SequenceOutput]:
        """Takes in what the oldest step in flight computed and returns what its clients get.

        Sequences that ended are free of blocks, but for those that a later step in flight writes to. Rows whose
        sequence has ended meanwhile are passed over.
        """
        flight = self._roster.land(batch)
        self._step_limit.grow()
        outputs = []
        for sequence, row, result in zip(flight.sequences, batch.rows, results, strict=True):
            if sequence.status is _RUNNING:
                output = self._commit_row(sequence, row, result)
                if output is not None:
                    outputs.append(output)
        return outputs

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
            self._roster.finish(sequence)
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
        sequences = self._roster.land(batch).sequences
        return [self._fail_sequence(sequence, sentence) for sequence in sequences if sequence.status is _RUNNING]

    def put_back(self, batch: ScheduledBatch, sentence: str) -> list[SequenceOutput]:
        """Undoes all steps in flight; the oldest, `batch`, did not fit into memory, so later ones hold half of it.

        None of them may still run. A batch of one token that did not fit never will: its sequence ends.
        """
        undone = self._roster.undo_flights()
        if batch.num_tokens > 1:
            self._step_limit.shrink(batch.num_tokens)
            return []
        self._step_limit.restore()
        sequence = undone[0].sequences[0]
        return [] if sequence.status is SequenceStatus.FINISHED else [self._fail_sequence(sequence, sentence)]

    def _fail_sequence(self, sequence: Sequence, sentence: str) -> SequenceOutput:
        self._roster.finish(sequence, is_suspect=True)
        return SequenceOutput(request_id=sequence.request.request_id, finish_reason=FinishReason.ERROR, error=sentence)

    def check_integrity(self) -> None:
        """Asserts that all books are in order and all bounds kept."""
        self._roster.check_integrity()
        assert self.num_running <= self._limits.max_num_seqs, "too many sequences run"
        assert len(self._roster) <= self._limits.max_sequences, "the queue overflows"
