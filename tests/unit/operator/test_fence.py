from __future__ import annotations

import asyncio
import time

import pytest

from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.fence import Fence, read_clock
from dedicate_operator.leadership import TRANSIT_S


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fence(clock):
    return Fence(clock)


async def write(fence, answered=None):
    async with fence.hold() as left_s:
        if answered is not None:
            await answered.wait()
        return left_s


def test_clock_goes_on_while_the_machine_is_suspended(monkeypatch):
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 7.0}.__getitem__)
    assert read_clock() == 7.0


async def test_shut_at_first(fence):
    with pytest.raises(NotLeaderError):
        await write(fence)


async def test_open_until(fence, clock):
    fence.move(110)
    assert await write(fence) == 10
    clock.now = 109.4
    assert await write(fence) == pytest.approx(0.6)
    clock.now = 109.6
    with pytest.raises(NotLeaderError):
        await write(fence)
    fence.move(120)
    await write(fence)


async def test_write_is_cut_off_at_the_end(fence, clock):
    fence.move(clock.now + 0.51)
    with pytest.raises(NotLeaderError, match="cut off"):
        await write(fence, asyncio.Event())


async def test_lost_lead_cuts_off_what_is_under_way(fence, clock):
    fence.move(clock.now + 10)
    writes = [asyncio.create_task(write(fence, asyncio.Event())) for _ in range(3)]
    await asyncio.sleep(0)
    fence.move(clock.now)
    fence.move(clock.now)
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert all(isinstance(result, NotLeaderError) for result in results)


async def test_drain_waits_for_answers_and_lets_nothing_begin(fence, clock):
    fence.move(clock.now + 10)
    answered = asyncio.Event()
    running = asyncio.create_task(write(fence, answered))
    await asyncio.sleep(0)
    drain = asyncio.create_task(fence.drain(30))
    await asyncio.sleep(0)
    with pytest.raises(NotLeaderError):
        await write(fence)
    assert not drain.done()
    answered.set()
    assert await drain is True
    assert await running == 10


async def test_drain_tells_of_a_write_without_an_answer(fence, clock):
    fence.move(clock.now + 10)
    running = asyncio.create_task(write(fence, asyncio.Event()))
    await asyncio.sleep(0)
    assert await fence.drain(0) is False
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert await fence.drain(0) is False


@pytest.mark.parametrize(
    ("error", "is_settled"),
    [(ClusterError("conflict", code=409), True), (ClusterError("connection lost"), False), (ValueError(), False)],
)
async def test_what_was_not_answered_is_settled_when_the_lease_would_have_run_out(fence, clock, error, is_settled):
    until = clock.now + 10
    fence.move(until)
    with pytest.raises(type(error)):
        async with fence.hold():
            raise error
    assert await fence.drain(0) is is_settled
    clock.now = until + TRANSIT_S
    assert await fence.drain(0) is True
