"""Ledger and scheduler under three times their capacity, in simulated time: no wall clock, no model.

Steps take 50 ms and a sequence ends with each token by chance, after 40 on average: 8 places make 4 sequences a second.
"""

from __future__ import annotations

import heapq
import math
from random import Random

import pytest

from dedicate_runtime.core.batch import RowResult
from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.core.request import Request, RequestId, SamplingParams
from dedicate_runtime.engine.interface import Terms
from dedicate_runtime.engine.ledger import Ledger
from dedicate_runtime.engine.streams import GroupStream
from dedicate_runtime.errors import QueueFullError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

STEP_S = 0.05
MEAN_TOKENS = 40
PLACES = 8
CAPACITY = PLACES / (MEAN_TOKENS * STEP_S)
END_ID = 0


class Knock:
    """One request that came, and what became of it."""

    def __init__(self, client, at, *, is_return):
        self.client = client
        self.at = at
        self.is_return = is_return
        self.refusal = None
        self.wait_s = None


class Service:
    """The queue's two halves and an engine without a model. Refused clients come back when they are told to, once."""

    def __init__(self, *, max_wait_s, seed=0):
        self.now = 0.0
        self.random = Random(seed)
        config = EngineConfig(
            model="/models/none",
            device=DeviceChoice.CPU,
            dtype=DtypeChoice.AUTO,
            max_num_seqs=PLACES,
            max_num_batched_tokens=512,
            max_queued_requests=256,
            max_queue_seconds=max_wait_s,
        )
        self.ledger = Ledger(config, clock=lambda: self.now, random=Random(seed))
        limits = SchedulerLimits(
            max_num_seqs=PLACES,
            max_num_batched_tokens=512,
            max_sequences=config.max_sequences,
            max_model_len=1024,
        )
        self.scheduler = Scheduler(limits, BlockManager(num_blocks=1024, block_size=16))
        self.knocks = []
        self.waiting = {}
        self.returns = []
        self.num_tokens = 0

    def knock(self, client, *, is_return=False):
        knock = Knock(client, self.now, is_return=is_return)
        self.knocks.append(knock)
        number = len(self.knocks)
        request = Request(
            request_id=RequestId(str(number)),
            prompt_token_ids=tuple(range(100 * number, 100 * number + 20)),
            sampling=SamplingParams(max_tokens=1000, end_ids=frozenset({END_ID})),
            client_id=client,
        )
        stream = GroupStream([request.request_id], abort=lambda _: None, turnstile=None)  # nobody reads it
        try:
            self.ledger.add([request], stream, Terms(is_return=is_return))
        except QueueFullError as error:
            knock.refusal = error
            if not is_return:
                heapq.heappush(self.returns, (self.now + math.ceil(error.retry_after_s), number, client))
            return
        self.scheduler.add([request])
        self.waiting[request.request_id] = knock

    def step(self):
        batch = self.scheduler.schedule()
        started, outputs = {}, []
        if batch is not None:
            for row in batch.rows:
                if (knock := self.waiting.pop(row.request_id, None)) is not None:
                    started[row.request_id] = self.now
                    knock.wait_s = self.now - knock.at
            outputs = self.scheduler.commit(batch, [self.result(row) for row in batch.rows])
            self.num_tokens += sum(len(output.token_ids) for output in outputs)
        self.now += STEP_S
        self.ledger.take_step(started, outputs)

    def result(self, row):
        token_id = END_ID if self.random.random() < 1 / MEAN_TOKENS else 9
        return RowResult(token_id=token_id if row.is_sampled else None)

    def run(self, seconds, **rates):
        """Let clients come by chance, so many a second, and give what came."""
        end, first = self.now + seconds, len(self.knocks)
        arrivals = dict.fromkeys(rates, self.now)
        while self.now < end:
            for client, rate in rates.items():
                while arrivals[client] <= self.now:
                    self.knock(client)
                    arrivals[client] += self.random.expovariate(rate)
            while self.returns and self.returns[0][0] <= self.now:
                self.knock(heapq.heappop(self.returns)[2], is_return=True)
            self.step()
        return self.knocks[first:]


def percentile(values, share):
    return sorted(values)[int(len(values) * share)]


def waits(knocks):
    return [knock.wait_s for knock in knocks if knock.wait_s is not None]


def admitted_share(knocks):
    return sum(knock.refusal is None for knock in knocks) / len(knocks)


@pytest.mark.parametrize("max_wait_s", [4.0, 12.0])
def test_waits_of_the_admitted_are_bounded_and_do_not_grow_with_the_overload(max_wait_s):
    service = Service(max_wait_s=max_wait_s)
    service.run(30, a=3 * CAPACITY)
    early, late = service.run(60, a=3 * CAPACITY), service.run(60, a=3 * CAPACITY)
    for knocks in (early, late):
        assert percentile(waits(knocks), 0.5) <= max_wait_s
        assert percentile(waits(knocks), 0.95) <= 1.6 * max_wait_s
    assert percentile(waits(late), 0.95) <= 1.5 * percentile(waits(early), 0.95)


def test_no_place_is_empty_while_clients_are_refused():
    service = Service(max_wait_s=4.0)
    service.run(30, a=3 * CAPACITY)
    num_tokens, num_steps = service.num_tokens, 60 / STEP_S
    service.run(60, a=3 * CAPACITY)
    # What a prompt's step takes from decoding is not counted as full.
    assert service.num_tokens - num_tokens >= 0.95 * PLACES * num_steps


def test_those_who_come_back_when_they_are_told_to_are_admitted():
    service = Service(max_wait_s=8.0)
    service.run(30, a=3 * CAPACITY)
    sustained = [knock for knock in service.run(90, a=3 * CAPACITY) if knock.is_return]
    assert admitted_share(sustained) >= 0.8


def test_those_whom_a_burst_turned_away_are_all_admitted_at_their_return():
    service = Service(max_wait_s=8.0)
    service.run(60, a=2 * CAPACITY)
    service.returns.clear()
    service.run(20, a=0.001)
    for _ in range(200):
        service.knock("a")
    returned = [knock for knock in service.run(60, a=0.001) if knock.is_return]
    assert len(returned) > 100
    assert admitted_share(returned) >= 0.95


def test_light_clients_do_not_notice_a_heavy_one():
    service = Service(max_wait_s=8.0)
    rates = {"heavy": 3 * CAPACITY, "one": CAPACITY / 10, "two": CAPACITY / 10, "three": CAPACITY / 10}
    service.run(30, **rates)
    knocks = service.run(120, **rates)
    light = [knock for knock in knocks if knock.client != "heavy"]
    heavy = [knock for knock in knocks if knock.client == "heavy"]
    assert admitted_share(light) == 1.0
    assert percentile(waits(light), 0.9) <= 3.0
    assert percentile(waits(heavy), 0.5) >= 4.0
    assert admitted_share(heavy) <= 0.5
