"""What clients of an overloaded server do, and what is told of it."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from bench.knocks import Crowd, Knock, summarise
from bench.load import Target
from bench.stream import Address

ERROR = b'{"error": {"message": "full"}}'
REFUSED = (
    b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 0\r\ncontent-type: application/json\r\n"
    b"content-length: " + str(len(ERROR)).encode() + b"\r\nconnection: close\r\n\r\n" + ERROR
)
EVENTS = b'data: {"choices": [{"delta": {"content": "Hi"}}]}\n\ndata: [DONE]\n\n'
ADMITTED = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: "
    + str(len(EVENTS)).encode()
    + b"\r\nconnection: close\r\n\r\n"
    + EVENTS
)


@pytest.fixture
async def server():
    """Refuses whoever comes for the first time; keeps the heads of all requests."""
    heads = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        heads.append(head)
        writer.write(ADMITTED if b"x-stainless-retry-count: 1\r\n" in head else REFUSED)
        await writer.drain()
        writer.close()

    listening = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with listening:
        yield listening.sockets[0].getsockname()[1], heads


def make_crowd(port):
    target = Target(address=Address(host="127.0.0.1", port=port, path="/v1", api_key="none"), model="m")
    return Crowd(target, (f"prompt {i}" for i in itertools.count()), seed=3)


async def test_who_is_refused_comes_back_once_as_told_and_with_its_own_key(server):
    port, heads = server
    async with asyncio.timeout(20):
        knocks = await make_crowd(port).run_open({"a": 60.0, "b": 60.0}, 0.25, patience_s=5.0)
    new, back = [k for k in knocks if not k.is_return], [k for k in knocks if k.is_return]
    assert len(new) == len(back) > 0
    assert {knock.status for knock in new} == {429}
    assert {(knock.status, knock.ttft_s is not None) for knock in back} == {(200, True)}
    assert sum(b"Bearer a\r\n" in head for head in heads) == sum(knock.key == "a" for knock in knocks)


async def test_return_that_is_due_too_late_is_left_out(server):
    port, _ = server
    async with asyncio.timeout(20):
        knocks = await make_crowd(port).run_open({"a": 60.0}, 0.25, patience_s=-10.0)
    assert not any(knock.is_return for knock in knocks)


def test_summary_tells_new_from_returned_and_early_from_late():
    answered = [
        Knock(key="a", at_s=at_s, is_return=False, status=200, first_byte_s=0.1, ttft_s=ttft_s, total_s=1.0)
        for at_s, ttft_s in ((1.0, 0.1), (12.0, 0.2), (25.0, 0.3))
    ]
    refused = Knock(key="a", at_s=2.0, is_return=False, status=429, first_byte_s=0.002, retry_after_s=4.0)
    back = [
        Knock(key="a", at_s=at_s, is_return=True, status=status, first_byte_s=0.1, ttft_s=None)
        for at_s, status in ((6.0, 429), (7.0, 200), (31.0, 200))
    ]
    told = summarise([*answered, refused, *back], seconds=30.0)
    assert (told["requests"], told["returns"], told["other_statuses"]) == (4, 3, 0)
    assert told["refused_share_of_new"] == 0.25
    assert told["admitted_share_of_returns_while_it_lasts"] == 0.5
    assert told["admitted_share_of_returns_afterwards"] == 1.0
    assert told["ttft_p99_s_by_third"] == [0.1, 0.2, 0.3]
    assert told["ttft_s"] == {"p50": 0.2, "p99": 0.3, "max": 0.3}
