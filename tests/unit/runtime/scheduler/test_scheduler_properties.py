"""Whatever arrives, is aborted or fails, in whatever order: the scheduler keeps its promises.

The model is a table of slots: a row writes its tokens into the slots of its blocks and the next token is a checksum of
what the slots of the whole sequence then hold. A block that two sequences share by mistake, a token that is skipped or
computed at a wrong position, a prefix that is not what it is taken for changes the output, and the output is compared
with what the request gives on its own. Prompts are cut from few texts, so that prefixes are shared all the time, and
come from few clients, whose shares `check_integrity` looks after.
"""

from __future__ import annotations

import zlib
from collections import deque
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, precondition, rule

from dedicate_runtime.core.batch import NULL_BLOCK_ID, RowResult
from dedicate_runtime.core.request import FinishReason, Request, RequestId, SamplingParams, TokenLogprobs
from dedicate_runtime.errors import QueueFullError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.budget import StepCosts
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

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
    """A KV cache that remembers which token was written where. Steps are computed in the order of their launch."""

    def __init__(self, block_size):
        self.block_size = block_size
        self.slots = {}

    def slot(self, row, position):
        block_id = row.block_table[position // self.block_size]
        assert block_id != NULL_BLOCK_ID
        return block_id * self.block_size + position % self.block_size

    def written_blocks(self, row):
        return set(row.block_table[row.start // self.block_size : (row.end - 1) // self.block_size + 1])

    def execute(self, batch, results_before):
        self.check_copies(batch)
        for copy in batch.block_copies:
            for offset in range(self.block_size):
                self.slots[copy.target * self.block_size + offset] = self.slots[copy.source * self.block_size + offset]
        self.check_writes(batch, batch)
        for row in batch.rows:
            token_ids = row.token_ids
            if row.fed_by is not None:
                assert token_ids == (0,)
                assert row.history is None
                token_ids = (results_before[row.fed_by].token_id,)
            for position, token_id in enumerate(token_ids, row.start):
                self.slots[self.slot(row, position)] = token_id
        return [self.result(row) for row in batch.rows]

    def check_copies(self, batch):
        sources = [copy.source for copy in batch.block_copies]
        targets = [copy.target for copy in batch.block_copies]
        assert not set(sources) & set(targets)
        assert len(set(targets)) == len(targets)
        for copy in batch.block_copies:
            assert sum(copy.target in row.block_table for row in batch.rows) == 1
            assert not any(copy.source in self.written_blocks(row) for row in batch.rows)

    def check_writes(self, writing, reading):
        """No row of `writing` writes to a block that a row of another sequence in `reading` holds."""
        for row in writing.rows:
            written = self.written_blocks(row)
            for other in reading.rows:
                if other.request_id != row.request_id:
                    assert not written & set(other.block_table), f"{row} writes to a block of {other}"
            assert not written & {copy.source for copy in reading.block_copies}

    def result(self, row):
        prompt_logprobs = tuple(TokenLogprobs(token_id, -1.0, ()) for token_id in row.prompt_targets)
        token_id = None
        if row.is_sampled:
            token_id = next_token([self.slots[self.slot(row, position)] for position in range(row.end)])
        return RowResult(token_id=token_id, prompt_logprobs=prompt_logprobs)


TEXTS = [[(seed + i * i) % VOCAB_SIZE for i in range(40)] for seed in range(3)]

requests_drawn = st.lists(
    st.tuples(
        st.sampled_from(TEXTS),
        st.sampled_from([8, 12, 4, 1, 2, 3, 5, 6, 9, 11, 14]),
        st.sampled_from([8, 6, 4, 12, 10, 2, 1, 0]),
        st.booleans(),
        st.sampled_from([{}, {}, {}, {"repetition_penalty": 1.1}, {"prompt_logprobs": True, "num_logprobs": 0}]),
        st.sampled_from(["", "a", "b"]),
    ),
    min_size=1,
    max_size=5,
)
costs_drawn = st.sampled_from(
    [None, StepCosts(decode_s=1.0, prefill_token_s=0.2), StepCosts(decode_s=1, prefill_token_s=9)]
)


class SchedulerMachine(RuleBasedStateMachine):
    requests = Bundle("requests")

    @initialize(
        max_num_seqs=st.sampled_from([4, 3, 2, 1]),
        spare_budget=st.sampled_from([20, 10, 4, 1, 0]),
        max_queued=st.sampled_from([8, 4, 1, 0]),
        max_queued_tokens=st.sampled_from([None, 0, 20]),
        block_size=st.integers(1, 4),
        spare_blocks=st.integers(0, 8),
        max_model_len=st.integers(12, 20),
        max_steps_ahead=st.sampled_from([1, 0]),
        has_prefix_cache=st.sampled_from([True, True, False]),
        floor=st.integers(1, 3),
        has_faults=st.booleans(),
    )
    def start(
        self,
        max_num_seqs,
        spare_budget,
        max_queued,
        max_queued_tokens,
        block_size,
        spare_blocks,
        max_model_len,
        max_steps_ahead,
        has_prefix_cache,
        floor,
        has_faults,
    ):
        self.limits = SchedulerLimits(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_seqs + spare_budget,
            max_sequences=max_num_seqs + max_queued,
            max_model_len=max_model_len,
            max_queued_tokens=max_queued_tokens,
            min_prefill_tokens=floor,
        )
        blocks = BlockManager(num_blocks=-(-max_model_len // block_size) + spare_blocks, block_size=block_size)
        self.scheduler = Scheduler(self.limits, blocks, has_prefix_cache=has_prefix_cache)
        self.max_steps_ahead = max_steps_ahead
        # A run full of faults seldom has much in a step; every second run is free of them.
        self.has_faults = has_faults
        self.model = SlotModel(block_size)
        self.flying = deque()
        self.last_results = []
        self.unfinished = {}
        self.outputs = {}
        self.num_made = 0

    @rule(target=requests, drawn=requests_drawn)
    def add(self, drawn):
        group = []
        for text, prompt_len, max_tokens, may_stop, sampling, client_id in drawn:
            self.num_made += 1
            group.append(
                Request(
                    request_id=RequestId(f"r{self.num_made}"),
                    prompt_token_ids=tuple(text[: min(prompt_len, self.limits.max_model_len - 1)]),
                    sampling=SamplingParams(
                        max_tokens=max_tokens, end_ids=frozenset({END_ID}) if may_stop else frozenset(), **sampling
                    ),
                    client_id=client_id,
                )
            )
        may_fit = len(self.unfinished) + len(group) <= self.limits.max_sequences
        num_waiting = self.scheduler.num_waiting
        try:
            self.scheduler.add(group)
        except QueueFullError:
            assert not may_fit or (self.limits.max_queued_tokens is not None and num_waiting)
            return multiple()
        assert may_fit, "the queue took more than it holds"
        for request in group:
            self.unfinished[request.request_id] = request
            self.outputs[request.request_id] = []
        return multiple(*(request.request_id for request in group))

    @rule(request_id=requests)
    def abort(self, request_id):
        self.scheduler.abort([request_id])
        self.unfinished.pop(request_id, None)

    @rule(costs=costs_drawn, count=st.sampled_from([4, 1, 2, 8]))
    def steps(self, costs, count):
        for _ in range(count):
            self.launch(costs)
            self.land()
            self.scheduler.check_integrity()

    @rule(request_id=requests, costs=costs_drawn)
    def abort_while_a_step_runs(self, request_id, costs):
        self.launch(costs)
        self.abort(request_id)
        self.scheduler.check_integrity()
        self.land()

    @precondition(lambda self: self.has_faults)
    @rule()
    def step_fails(self):
        self.launch(None)
        if self.flying:
            batch, _, _ = self.flying.popleft()
            expected = {row.request_id for row in batch.rows} & self.unfinished.keys()
            failed = self.scheduler.fail(batch, "It broke.")
            assert {output.request_id for output in failed} == expected
            self.take_failed(failed, "It broke.")

    @precondition(lambda self: self.has_faults)
    @rule()
    def first_row_fails(self):
        self.launch(None)
        if self.flying:
            batch, results, _ = self.flying.popleft()
            results = [RowResult(error="Not a number."), *results[1:]]
            outputs = self.scheduler.commit(batch, results)
            if batch.rows[0].request_id in self.unfinished:
                self.take_failed(outputs[:1], "Not a number.")
                outputs = outputs[1:]
            self.take(outputs)

    @precondition(lambda self: self.has_faults)
    @rule()
    def step_does_not_fit(self):
        self.launch(None)
        if self.flying:
            batch, _, slots_before = self.flying.popleft()
            self.flying.clear()
            self.model.slots = slots_before
            failed = self.scheduler.put_back(batch, "Too large.")
            assert len(failed) <= (batch.num_tokens == 1)
            self.take_failed(failed, "Too large.")

    def launch(self, costs):
        while len(self.flying) <= self.max_steps_ahead:
            batch = self.scheduler.schedule(costs)
            self.scheduler.check_integrity()
            if batch is None:
                assert self.flying or not self.unfinished, "work is there and nothing is scheduled"
                return
            self.check_batch(batch)
            if self.flying:
                self.model.check_writes(self.flying[-1][0], batch)
            slots_before = dict(self.model.slots)
            self.last_results = self.model.execute(batch, self.last_results)
            self.flying.append((batch, self.last_results, slots_before))

    def check_batch(self, batch):
        assert 0 < batch.num_tokens <= self.limits.max_num_batched_tokens
        assert len(batch.rows) <= self.limits.max_num_seqs
        assert {row.request_id for row in batch.rows} <= self.unfinished.keys()
        assert len({row.request_id for row in batch.rows}) == len(batch.rows)
        decoding = batch.rows[: batch.num_decode_rows]
        assert all(len(row.token_ids) == 1 and row.is_sampled for row in decoding)
        assert [row.start for row in decoding] == sorted(row.start for row in decoding)
        for row in batch.rows:
            if row.history is not None:
                assert row.history.output_token_ids == tuple(self.outputs[row.request_id])

    def land(self):
        if self.flying:
            batch, results, _ = self.flying.popleft()
            self.take(self.scheduler.commit(batch, results))

    def take(self, outputs):
        for output in outputs:
            request = self.unfinished[output.request_id]
            tokens = self.outputs[output.request_id]
            if not tokens and request.sampling.prompt_logprobs:
                first, *others = output.prompt_logprobs
                assert first is None
                assert tuple(entry.token_id for entry in others) == request.prompt_token_ids[1:]
            else:
                assert output.prompt_logprobs == ()
            tokens += output.token_ids
            if output.finish_reason is not None:
                del self.unfinished[output.request_id]
                assert (tokens, output.finish_reason) == generate_alone(request, self.limits.max_model_len)

    def take_failed(self, outputs, sentence):
        for output in outputs:
            assert output.finish_reason is FinishReason.ERROR
            assert output.error == sentence
            del self.unfinished[output.request_id]

    @invariant()
    def is_whole(self):
        if hasattr(self, "scheduler"):
            self.scheduler.check_integrity()
            assert self.scheduler.num_running + self.scheduler.num_waiting == len(self.unfinished)

    def teardown(self):
        """Every request ends, in a number of steps that the work bounds, and leaves nothing behind."""
        if not hasattr(self, "scheduler"):
            return
        bound = 2 + len(self.unfinished) * self.limits.max_model_len * (self.limits.max_model_len + 1)
        for _ in range(bound):
            if not self.unfinished and not self.flying:
                break
            self.steps(None, 1)
        assert not self.unfinished
        assert not self.scheduler.has_work
        assert self.scheduler.num_free_blocks == self.scheduler.num_blocks


SchedulerMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestSchedulerProperties = SchedulerMachine.TestCase


@pytest.mark.parametrize("seed", range(30))
def test_long_run_under_load_keeps_the_same_promises(seed):
    """What short examples seldom reach: a full queue, full steps and a full cache for hundreds of steps."""
    random = Random(seed)
    machine = SchedulerMachine()
    machine.start(
        max_num_seqs=4,
        spare_budget=random.choice([0, 4, 20]),
        max_queued=8,
        max_queued_tokens=None,
        block_size=random.choice([1, 2, 4]),
        spare_blocks=random.choice([0, 4, 8, 30]),
        max_model_len=20,
        max_steps_ahead=seed % 2,
        has_prefix_cache=seed % 5 > 0,
        floor=random.choice([1, 3]),
        has_faults=False,
    )
    for _ in range(300):
        sampling = random.choice([{}, {}, {}, {}, {"repetition_penalty": 1.1}, {"prompt_logprobs": True}])
        text = random.choice(TEXTS)
        prompt_len, max_tokens, may_stop = random.choice([3, 4, 8, 8, 11]), random.randint(0, 12), random.random() < 0.5
        machine.add([(text, prompt_len, max_tokens, may_stop, sampling, random.choice("aaab"))])
        machine.steps(random.choice([None, StepCosts(decode_s=1.0, prefill_token_s=0.2)]), 1)
        if machine.unfinished and random.random() < 0.05:
            machine.abort(random.choice(sorted(machine.unfinished)))
        machine.is_whole()
    assert machine.scheduler.num_generated_tokens > 300
    machine.teardown()
