from __future__ import annotations

import asyncio

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dedicate_operator.metrics import QueueState
from dedicate_operator.workqueue import Backoff, KeySchedule, WorkQueue


@pytest.mark.parametrize(
    ("num_failures", "jitter", "delay_s"),
    [(1, 1.0, 0.2), (1, 0.0, 0.1), (2, 1.0, 0.4), (4, 1.0, 1.6), (30, 1.0, 5.0), (10_000, 0.0, 2.5)],
)
def test_backoff(num_failures, jitter, delay_s):
    assert Backoff(base_s=0.2, limit_s=5.0).delay_s(num_failures, jitter) == pytest.approx(delay_s)


def test_key_stands_once_and_in_order():
    schedule = KeySchedule()
    for key in ("a", "b", "a"):
        schedule.add(key, 0)
    assert [schedule.take(0), schedule.take(0), schedule.take(0)] == ["a", "b", None]


def test_key_that_is_worked_on_waits_for_its_end():
    schedule = KeySchedule()
    schedule.add("a", 0)
    assert schedule.take(0) == "a"
    schedule.add("a", 0)
    assert schedule.take(0) is None
    schedule.finish("a", 0)
    assert schedule.take(0) == "a"
    schedule.finish("a", 0)
    assert schedule.take(0) is None


def test_due_time_is_the_earliest_and_an_add_comes_before_it():
    schedule = KeySchedule()
    schedule.add_at("a", 10)
    schedule.add_at("a", 5)
    schedule.add_at("a", 7)
    assert schedule.next_due() == 5
    assert schedule.take(4.9) is None
    assert schedule.take(5) == "a"
    schedule.finish("a", 0)
    assert schedule.next_due() is None
    schedule.add_at("b", 20)
    schedule.add("b", 0)
    assert schedule.take(0) == "b"
    schedule.finish("b", 0)
    assert schedule.take(100) is None


def test_longest_work():
    schedule = KeySchedule()
    assert schedule.longest_work_s(100) == 0
    schedule.add("a", 0)
    schedule.take(10)
    assert schedule.longest_work_s(25) == 15


def test_longest_wait_counts_from_when_the_key_became_ready():
    schedule = KeySchedule()
    assert schedule.longest_wait_s(100) == 0
    schedule.add_at("late", 20)
    schedule.add("a", 10)
    schedule.add("a", 15)
    assert schedule.longest_wait_s(30) == 20
    assert schedule.take(30) == "a"
    assert schedule.longest_wait_s(30) == 10
    schedule.add("a", 31)
    schedule.finish("a", 40)
    assert schedule.take(40) == "late"
    assert schedule.longest_wait_s(45) == 5
    assert schedule.count(45) == (1, 0, 1)


class ScheduleMachine(RuleBasedStateMachine):
    """No key is lost, and none is worked on twice at once."""

    def __init__(self) -> None:
        super().__init__()
        self.schedule = KeySchedule()
        self.now = 0.0
        self.active: set[int] = set()
        self.owed: set[int] = set()
        self.due: dict[int, float] = {}

    @rule(key=st.integers(0, 4))
    def add(self, key):
        self.schedule.add(key, self.now)
        self.owed.add(key)
        self.due.pop(key, None)

    @rule(key=st.integers(0, 4), delay=st.floats(0, 10))
    def add_at(self, key, delay):
        self.schedule.add_at(key, self.now + delay)
        if key not in self.owed:
            self.due[key] = min(self.due.get(key, self.now + delay), self.now + delay)

    @rule(seconds=st.floats(0, 10))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def take(self):
        ripe = {key for key, due in self.due.items() if due <= self.now}
        self.owed |= ripe
        for key in ripe:
            del self.due[key]
        key = self.schedule.take(self.now)
        if key is None:
            assert not self.owed - self.active
        else:
            assert key not in self.active
            assert key in self.owed
            self.owed.discard(key)
            self.active.add(key)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def finish(self, data):
        key = data.draw(st.sampled_from(sorted(self.active)))
        self.schedule.finish(key, self.now)
        self.active.discard(key)
        if key in self.owed:
            self.due.pop(key, None)

    @invariant()
    def size_is_bounded_by_the_keys(self):
        assert len(self.schedule) <= 5


TestSchedule = ScheduleMachine.TestCase


@pytest.fixture
def queue():
    return WorkQueue(clock=lambda: 0.0, random=lambda: 1.0, backoff=Backoff(base_s=1.0, limit_s=4.0))


async def test_get_waits_for_a_key(queue):
    waiter = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    assert not waiter.done()
    queue.add("a")
    assert await asyncio.wait_for(waiter, 5) == "a"


async def test_two_workers_get_two_keys(queue):
    workers = [asyncio.create_task(queue.get()) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    assert sorted(await asyncio.wait_for(asyncio.gather(*workers), 5)) == ["a", "b"]


async def test_retries_back_off_until_forgotten(queue):
    assert [queue.retry("a") for _ in range(4)] == [1.0, 2.0, 4.0, 4.0]
    assert queue.retry("a", at_least_s=9) == 9
    queue.forget_failures("a")
    assert queue.retry("a") == 1.0


async def test_state_for_metrics():
    now = 100.0
    queue = WorkQueue(clock=lambda: now, random=lambda: 1.0, backoff=Backoff())
    for key in "abc":
        queue.add(key)
    await queue.get()
    queue.retry("d", at_least_s=60)
    now = 130.0
    # Work began 20 s ago; what had stood there before is not late.
    assert queue.read_state(since=110.0) == QueueState(2, 1, 1, oldest_s=20.0, num_retries=1)
    assert queue.read_state(since=90.0).oldest_s == 30.0
    # Nothing waits for workers where there are none.
    assert queue.read_state(since=None) == QueueState(0, 1, 1, oldest_s=0.0, num_retries=1)


async def test_due_key_is_given_out_when_its_time_has_come():
    now = 0.0
    queue = WorkQueue(clock=lambda: now, random=lambda: 1.0, backoff=Backoff())
    queue.add_after("a", 3600)
    waiter = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    now = 3600.0
    queue.add("b")
    assert {await asyncio.wait_for(item, 5) for item in (waiter, queue.get())} == {"a", "b"}


async def test_due_key_needs_nobody_to_wake_the_worker():
    queue = WorkQueue(clock=asyncio.get_running_loop().time, random=lambda: 1.0, backoff=Backoff())
    queue.add_after("a", 0.02)
    assert await asyncio.wait_for(queue.get(), 5) == "a"
