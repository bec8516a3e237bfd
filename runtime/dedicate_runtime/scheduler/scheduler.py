"""Continuous batching under a token budget: who computes what in the next step.

Rules, in the order in which they apply to a step:

1. Every running sequence that needs one token gets it (decode first), oldest first. Where no block is free for the new
   token, the youngest running sequence is preempted: it gives its blocks back and computes its tokens again later.
2. Running sequences whose prompt is not through yet take what is left of the budget, oldest first, in chunks.
3. Waiting sequences are admitted in order of arrival while budget, places and blocks last. The first that does not fit
   stops the admission, so none is overtaken.

Why every request ends: blocks only ever go from younger sequences to older ones and the cache holds at least one
sequence of full length, so the oldest always gets on; and each sequence has a length limit.

Pure: no clock, no tensors, no logging; time and tokens come from outside.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dedicate_runtime.core.batch import RowResult, ScheduledBatch, ScheduledRow, TokenHistory
from dedicate_runtime.core.request import FinishReason, RequestId, SequenceOutput
from dedicate_runtime.core.sequence import Sequence, SequenceStatus
from dedicate_runtime.errors import QueueFullError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Sequence as Items

    from dedicate_runtime.core.request import Request
    from dedicate_runtime.scheduler.block_manager import BlockManager


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """What one step and the queue may hold. `max_sequences` counts running and waiting together."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_sequences: int
    max_model_len: int


class Scheduler:
    """Owns every unfinished sequence and the block ids they use."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockManager) -> None:
        if limits.max_num_batched_tokens < limits.max_num_seqs:
            raise ValueError("max_num_batched_tokens must be at least max_num_seqs")
        if blocks.num_blocks < blocks.count_blocks(limits.max_model_len):
            raise ValueError("the KV cache holds less than one sequence of max_model_len tokens")
        self._limits = limits
        self._blocks = blocks
        # Every waiting sequence arrived after every running one: admission is in order, preemption takes the youngest.
        self._running: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._by_id: dict[RequestId, Sequence] = {}
        self._num_arrivals = 0
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
    def num_blocks(self) -> int:
        return self._blocks.num_blocks

    @property
    def has_work(self) -> bool:
        return bool(self._by_id)

    def add(self, requests: Items[Request]) -> None:
        """Queues all of `requests` or none.

        Raises:
            QueueFullError: running, waiting and new sequences together exceed `max_sequences`.
            RequestError: a request can never be served: too long, or its id is in use.
        """
        if len(self._by_id) + len(requests) > self._limits.max_sequences:
            raise QueueFullError(f"The queue is full: {len(self._by_id)} sequences are running or waiting.")
        for request in requests:
            self._check_serviceable(request)
        for request in requests:
            sequence = Sequence(request, self._num_arrivals)
            self._num_arrivals += 1
            self._by_id[request.request_id] = sequence
            self._waiting.append(sequence)

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
        """Ends sequences without an output; ids that are unknown or ended already are passed over."""
        for request_id in request_ids:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._finish(sequence)

    def schedule(self) -> ScheduledBatch | None:
        """Decides the next step; None if there is nothing to do. `commit` or `fail` must follow."""
        decoding = self._schedule_decodes()
        budget = self._limits.max_num_batched_tokens - len(decoding)
        rows = [self._build_row(sequence, 1) for sequence in decoding]
        for sequence in self._running:
            if budget and sequence.num_uncached_tokens > 1:
                budget -= self._append_chunk(rows, sequence, budget)
        while budget and self._admit_next():
            budget -= self._append_chunk(rows, self._running[-1], budget)
        if not rows:
            return None
        return ScheduledBatch(rows=tuple(rows), num_decode_rows=len(decoding))

    def _schedule_decodes(self) -> list[Sequence]:
        """Finds a slot for the next token of each decoding sequence, preempting from the young end; shortest first."""
        decoding = []
        # The list shrinks from its end while it is walked: whoever was preempted is not reached.
        for sequence in self._running:
            if sequence.num_uncached_tokens > 1:
                continue
            while sequence.status is SequenceStatus.RUNNING and not self._has_slot(sequence):
                if self._blocks.num_free:
                    sequence.block_table += self._blocks.allocate(1)
                else:
                    self._preempt_youngest()
            if sequence.status is SequenceStatus.RUNNING:
                decoding.append(sequence)
        return sorted(decoding, key=lambda sequence: sequence.num_tokens)

    def _has_slot(self, sequence: Sequence) -> bool:
        return self._blocks.count_blocks(sequence.num_tokens) <= len(sequence.block_table)

    def _preempt_youngest(self) -> None:
        sequence = self._running.pop()
        sequence.move_to(SequenceStatus.WAITING)
        self._waiting.appendleft(sequence)
        self._release_blocks(sequence)
        if not sequence.output_token_ids:
            sequence.forget_prompt_logprobs()
        self.num_preemptions += 1

    def _admit_next(self) -> bool:
        """Moves the first waiting sequence to running if places and blocks allow."""
        if not self._waiting or len(self._running) >= self._limits.max_num_seqs:
            return False
        sequence = self._waiting[0]
        num_needed = self._blocks.count_blocks(sequence.num_tokens)
        # One block for each running sequence is kept back: admission must not be what causes the next preemption.
        if num_needed + len(self._running) > self._blocks.num_free:
            return False
        sequence.move_to(SequenceStatus.RUNNING)
        self._waiting.popleft()
        self._running.append(sequence)
        sequence.block_table += self._blocks.allocate(num_needed)
        return True

    def _append_chunk(self, rows: list[ScheduledRow], sequence: Sequence, budget: int) -> int:
        num_tokens = min(sequence.num_uncached_tokens, budget)
        rows.append(self._build_row(sequence, num_tokens))
        return num_tokens

    def _build_row(self, sequence: Sequence, num_tokens: int) -> ScheduledRow:
        sampling = sequence.request.sampling
        start = sequence.num_cached_tokens
        end = start + num_tokens
        is_sampled = end == sequence.num_tokens and sampling.max_tokens > 0
        history = None
        if is_sampled and sampling.has_penalties:
            history = TokenHistory(
                prompt_token_ids=sequence.request.prompt_token_ids,
                output_token_ids=tuple(sequence.output_token_ids),
            )
        # With the first output they have been delivered: a preemption after it computes the prompt without them.
        wants_targets = sampling.prompt_logprobs and not sequence.output_token_ids
        return ScheduledRow(
            request_id=sequence.request.request_id,
            token_ids=sequence.tokens_between(start, end),
            start=start,
            block_table=tuple(sequence.block_table),
            sampling=sampling,
            is_sampled=is_sampled,
            output_position=len(sequence.output_token_ids),
            prompt_targets=sequence.request.prompt_token_ids[start + 1 : end + 1] if wants_targets else (),
            history=history,
        )

    def commit(self, batch: ScheduledBatch, results: Items[RowResult]) -> list[SequenceOutput]:
        """Takes in what a step computed and returns what its clients get; ended sequences are free of blocks.

        Rows whose sequence was aborted meanwhile are passed over.
        """
        outputs = []
        for row, result in zip(batch.rows, results, strict=True):
            sequence = self._by_id.get(row.request_id)
            if sequence is not None:
                output = self._commit_row(sequence, row, result)
                if output is not None:
                    outputs.append(output)
        return outputs

    def _commit_row(self, sequence: Sequence, row: ScheduledRow, result: RowResult) -> SequenceOutput | None:
        if result.error is not None:
            return self._fail_sequence(sequence, result.error)
        sequence.num_cached_tokens = row.end
        sequence.prompt_logprobs += result.prompt_logprobs
        if row.end < sequence.num_tokens:
            return None
        is_first_output = not sequence.output_token_ids
        if is_first_output:
            self.num_prompt_tokens += sequence.num_prompt_tokens
        token_ids: tuple[int, ...] = ()
        if row.is_sampled:
            assert result.token_id is not None, "a sampled row brought no token"
            token_ids = (result.token_id,)
            sequence.output_token_ids.append(result.token_id)
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
        num_output_tokens = len(sequence.output_token_ids)
        if (
            num_output_tokens > sampling.min_tokens
            and num_output_tokens
            and sequence.output_token_ids[-1] in sampling.end_ids
        ):
            return FinishReason.STOP
        if num_output_tokens >= sampling.max_tokens or sequence.num_tokens >= self._limits.max_model_len:
            return FinishReason.LENGTH
        return None

    def fail(self, batch: ScheduledBatch, sentence: str) -> list[SequenceOutput]:
        """Ends every sequence of a batch whose step could not be computed."""
        sequences = (self._by_id.get(row.request_id) for row in batch.rows)
        return [self._fail_sequence(sequence, sentence) for sequence in sequences if sequence is not None]

    def _fail_sequence(self, sequence: Sequence, sentence: str) -> SequenceOutput:
        self._finish(sequence)
        return SequenceOutput(request_id=sequence.request.request_id, finish_reason=FinishReason.ERROR, error=sentence)

    def _finish(self, sequence: Sequence) -> None:
        was_running = sequence.status is SequenceStatus.RUNNING
        sequence.move_to(SequenceStatus.FINISHED)
        if was_running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release_blocks(sequence)
        del self._by_id[sequence.request.request_id]

    def _release_blocks(self, sequence: Sequence) -> None:
        self._blocks.release(sequence.block_table)
        sequence.block_table = []
        sequence.num_cached_tokens = 0

    def check_integrity(self) -> None:
        """Asserts that no block is owned twice or lost and that each sequence is where its status says."""
        self._blocks.check_integrity()
        owned = [block_id for sequence in self._running for block_id in sequence.block_table]
        assert self._blocks.owns_exactly(owned), "running sequences do not own exactly the blocks in use"
        for sequence in self._running:
            assert sequence.status is SequenceStatus.RUNNING, sequence
            assert sequence.num_cached_tokens <= len(sequence.block_table) * self._blocks.block_size, sequence
            assert sequence.num_uncached_tokens >= 1, sequence
        for sequence in self._waiting:
            assert sequence.status is SequenceStatus.WAITING, sequence
            assert not sequence.block_table, sequence
            assert sequence.num_cached_tokens == 0, sequence
        in_order = [*self._running, *self._waiting]
        arrivals = [sequence.arrival for sequence in in_order]
        assert arrivals == sorted(set(arrivals)), "sequences are out of order of arrival"
        assert {sequence.request.request_id for sequence in in_order} == set(self._by_id), "a sequence is lost"
        assert len(self._running) <= self._limits.max_num_seqs, "too many sequences run"
        assert len(self._by_id) <= self._limits.max_sequences, "the queue overflows"
