"""Whatever arrives, is aborted or fails, in whatever order: the scheduler keeps its promises.

The model is a table of slots: a row writes its tokens into the slots of its blocks and the next token is a checksum of
what the slots of the whole sequence then hold. A block that two sequences share by mistake, a token that is skipped or
computed at a wrong position changes the output, and the output is compared with what the request gives on its own.
"""

from __future__ import annotations

import zlib

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from dedicate_runtime.core.batch import NULL_BLOCK_ID, RowResult
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams
from dedicate_runtime.errors import QueueFullError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.scheduler import Scheduler, SchedulerLimits

VOCAB_SIZE = 7
END_ID = 0


def next_token(token_ids):
    return zlib.crc32(bytes(token_ids)) % VOCAB_SIZE


def generate_alone(request, max_model_len):
    """The output of a request that has the engine to itself, and why it ended."""
    tokens = list(request.prompt_token_ids)
    output = []
    while len(output) < request.sampling.max_tokens and len(tokens) < max_model_len:
        output.append(next_token(tokens))
        tokens.append(output[-1])
        if output[-1] in request.sampling.end_ids:
            return output, FinishReason.STOP
    return output, FinishReason.LENGTH


class SlotModel:
    """A KV cache that remembers which token was written where."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.slots = {}

    def slot(self, row, position):
        block_id = row.block_table[position // self.block_size]
        assert block_id != NULL_BLOCK_ID
        return block_id * self.block_size + position % self.block_size

    def execute(self, batch):
        written = set()
        for row in batch.rows:
            for position, token_id in enumerate(row.token_ids, row.start):
                slot = self.slot(row, position)
                assert slot not in written, "two rows write one slot"
                written.add(slot)
                self.slots[slot] = token_id
        return [self.result(row) for row in batch.rows]

    def result(self, row):
        if not row.is_sampled:
            return RowResult()
        return RowResult(token_id=next_token([self.slots[self.slot(row, p)] for p in range(row.end)]))


requests_drawn = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12), st.booleans()), min_size=1, max_size=3)


class SchedulerMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(
        max_num_seqs=st.integers(1, 4),
        spare_budget=st.integers(0, 6),
        max_queued=st.integers(0, 4),
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 6),
        max_model_len=st.integers(12, 20),
    )
    def start(self, max_num_seqs, spare_budget, max_queued, block_size, spare_blocks, max_model_len):
        self.limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_sequences=max_num_seqs + max_queued,
            max_model_len=max_model_len,
        )
        blocks = BlockManager(num_blocks=-(-max_model_len // block_size) + spare_blocks, block_size=block_size)
        self.scheduler = Scheduler(self.limits, blocks)
        self.model = SlotModel(block_size)
        self.unfinished = {}
        self.outputs = {}
        self.num_made = 0

    @rule(target=requests, drawn=requests_drawn)
    def add(self, drawn):
        group = []
        for prompt_len, max_tokens, may_stop in drawn:
            self.num_made += 1
            prompt = tuple(
                (self.num_made + i) % VOCAB_SIZE for i in range(min(prompt_len, self.limits.max_model_len - 1))
            )
            group.append(
                Request(
                    request_id=RequestId(f"r{self.num_made}"),
                    prompt_token_ids=prompt,
                    sampling=SamplingParams(
                        max_tokens=max_tokens, end_ids=frozenset({END_ID}) if may_stop else frozenset()
                    ),
                )
            )
        if len(self.unfinished) + len(group) > self.limits.max_sequences:
            try:
                self.scheduler.add(group)
            except QueueFullError:
                return multiple()
            raise AssertionError("the queue took more than it holds")
        self.scheduler.add(group)
        for request in group:
            self.unfinished[request.request_id] = request
            self.outputs[request.request_id] = []
        return multiple(*(request.request_id for request in group))

    @rule(request_id=requests)
    def abort(self, request_id):
        self.scheduler.abort([request_id])
        self.unfinished.pop(request_id, None)

    @rule()
    def step(self):
        batch = self.schedule()
        if batch is not None:
            self.take(self.scheduler.commit(batch, self.model.execute(batch)))

    @rule(request_id=requests)
    def abort_while_a_step_runs(self, request_id):
        batch = self.schedule()
        self.abort(request_id)
        if batch is not None:
            self.take(self.scheduler.commit(batch, self.model.execute(batch)))

    @rule()
    def step_fails(self):
        batch = self.schedule()
        if batch is not None:
            failed = self.scheduler.fail(batch, "It broke.")
            assert {output.request_id for output in failed} == {row.request_id for row in batch.rows}
            for output in failed:
                assert output.finish_reason is FinishReason.ERROR
                assert output.error == "It broke."
                del self.unfinished[output.request_id]

    @rule()
    def first_row_fails(self):
        batch = self.schedule()
        if batch is not None:
            results = self.model.execute(batch)
            results[0] = RowResult(error="Not a number.")
            outputs = self.scheduler.commit(batch, results)
            assert outputs[0].error == "Not a number."
            del self.unfinished[outputs[0].request_id]
            self.take(outputs[1:])

    def schedule(self):
        batch = self.scheduler.schedule()
        assert (batch is None) == (not self.unfinished), "work is there and nothing is scheduled, or the reverse"
        if batch is not None:
            assert 0 < batch.num_tokens <= self.limits.max_num_batched_tokens
            assert len(batch.rows) <= self.limits.max_num_seqs
            assert len({row.request_id for row in batch.rows}) == len(batch.rows)
            assert all(len(row.token_ids) == 1 for row in batch.rows[: batch.num_decode_rows])
        self.scheduler.check_integrity()
        return batch

    def take(self, outputs):
        for output in outputs:
            tokens = self.outputs[output.request_id]
            tokens += output.token_ids
            if output.finish_reason is not None:
                request = self.unfinished.pop(output.request_id)
                assert (tokens, output.finish_reason) == generate_alone(request, self.limits.max_model_len)

    @invariant()
    def is_whole(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.unfinished)

    def teardown(self):
        """Every request ends, in a number of steps that the work bounds, and leaves nothing behind."""
        if not hasattr(self, "scheduler"):
            return
        bound = 1 + len(self.unfinished) * self.limits.max_model_len * (self.limits.max_model_len + 1)
        for _ in range(bound):
            if not self.scheduler.has_work:
                break
            self.step()
            self.scheduler.check_integrity()
        assert not self.unfinished
        assert not self.scheduler.has_work
        assert self.scheduler.num_free_blocks == self.scheduler.num_blocks


SchedulerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSchedulerProperties = SchedulerMachine.TestCase
