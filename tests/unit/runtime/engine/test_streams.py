"""Outputs that wait are merged without loss, and streams go on a few at a time."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dedicate_runtime.core.request import FinishReason, RequestId, SequenceOutput, TokenLogprobs
from dedicate_runtime.engine.streams import GroupStream, Turnstile

NAMES = ("a", "b", "c")


def output(name, *token_ids, reason=None, **fields):
    return SequenceOutput(
        request_id=RequestId(name),
        token_ids=token_ids,
        logprobs=tuple(TokenLogprobs(token_id, -0.5, ()) for token_id in token_ids),
        finish_reason=reason,
        **fields,
    )


def open_stream(names=NAMES):
    aborted = []
    stream = GroupStream(names, abort=aborted.extend, turnstile=Turnstile(asyncio.get_running_loop()))
    return stream, aborted


class Reading:
    """A task that fetches all outputs of a stream, as long as it is let."""

    def __init__(self, stream):
        self.outputs = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.task = asyncio.create_task(self._read(stream))

    async def _read(self, stream):
        async for fetched in stream:
            self.outputs.append(fetched)
            await self.may_go_on.wait()


@given(steps=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.booleans()), max_size=30))
def test_what_waits_is_merged_in_order_and_whole(steps):
    """Whenever a reader pauses: each sequence's tokens and log-probabilities come in order, its end once and last."""

    async def scenario():
        stream, _ = open_stream()
        reading = Reading(stream)
        given_ids = {name: [] for name in NAMES}
        counter = 0
        for name, count, is_reading in steps:
            (reading.may_go_on.set if is_reading else reading.may_go_on.clear)()
            token_ids = tuple(range(counter, counter + count))
            counter += count
            given_ids[name] += token_ids
            stream.deliver(output(name, *token_ids))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        for name in NAMES:
            given_ids[name].append(-1)
            stream.deliver(output(name, -1, reason=FinishReason.LENGTH))
            stream.deliver(output(name, -2))  # nothing counts after the end
        reading.may_go_on.set()
        async with asyncio.timeout(10):
            await reading.task
        for name in NAMES:
            mine = [one for one in reading.outputs if one.request_id == name]
            assert [token_id for one in mine for token_id in one.token_ids] == given_ids[name]
            assert all([entry.token_id for entry in one.logprobs] == list(one.token_ids) for one in mine)
            assert [one.finish_reason for one in mine][:-1] == [None] * (len(mine) - 1)
            assert mine[-1].finish_reason is FinishReason.LENGTH

    asyncio.run(scenario())


async def test_slow_reader_finds_one_output_a_sequence():
    stream, _ = open_stream()
    prompt = (None, TokenLogprobs(1, -1.0, ()))
    stream.deliver(output("b", 0, prompt_logprobs=prompt))
    for token_id in range(1, 1000):
        stream.deliver(output("b", token_id))
        stream.deliver(output("a", token_id))
    stream.deliver(output("b", reason=FinishReason.ERROR, error="It failed."))
    first, second = await anext(stream), await anext(stream)
    assert (first.request_id, first.token_ids, first.error) == ("b", tuple(range(1000)), "It failed.")
    assert first.prompt_logprobs == prompt
    assert (second.request_id, second.token_ids) == ("a", tuple(range(1, 1000)))


async def test_closed_stream_ends_for_whoever_waits_for_it():
    stream, aborted = open_stream()
    reading = Reading(stream)
    await asyncio.sleep(0)
    await stream.aclose()
    async with asyncio.timeout(10):
        await reading.task
    assert set(aborted) == set(NAMES)
    assert reading.outputs == []


async def count_by_iteration(turnstile, waiters, iterations):
    """Gives how many have gone on after each iteration of the loop."""
    counts = []
    for _ in range(iterations):
        await asyncio.sleep(0)
        counts.append(sum(waiter.done() for waiter in waiters))
    return counts


@pytest.mark.parametrize("lot", [1, 2, 3])
async def test_no_more_than_a_lot_goes_on_between_two_looks_at_the_sockets(lot):
    loop = asyncio.get_running_loop()
    turnstile = Turnstile(loop, lot=lot)
    waiters = [loop.create_future() for _ in range(7)]
    for waiter in waiters:
        turnstile.pass_through(waiter)
    assert sum(waiter.done() for waiter in waiters) == lot, "who comes first does not wait at all"
    counts = [lot, *await count_by_iteration(turnstile, waiters, 7)]
    assert all(late - early <= lot for early, late in pairwise(counts))
    assert counts[-1] == 7
    assert [waiter.done() for waiter in waiters] == [True] * 7


async def test_turnstile_lets_who_comes_later_wait_for_its_turn():
    loop = asyncio.get_running_loop()
    turnstile = Turnstile(loop, lot=2)
    first, later = [[loop.create_future() for _ in range(4)] for _ in range(2)]
    for waiter in first:
        turnstile.pass_through(waiter)
    await asyncio.sleep(0)
    for waiter in later:
        turnstile.pass_through(waiter)
    order = []
    for name, waiters in (("first", first), ("later", later)):
        for waiter in waiters:
            waiter.add_done_callback(lambda _, name=name: order.append(name))
    async with asyncio.timeout(10):
        await asyncio.gather(*first, *later)
    await asyncio.sleep(0)
    assert order == ["first"] * 4 + ["later"] * 4


async def test_turnstile_passes_over_who_has_left():
    loop = asyncio.get_running_loop()
    turnstile = Turnstile(loop, lot=1)
    waiters = [loop.create_future() for _ in range(3)]
    for waiter in waiters:
        turnstile.pass_through(waiter)
    waiters[1].cancel()
    async with asyncio.timeout(10):
        await waiters[2]
