"""What the soak counts as an answer, and what lets it fail."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.soak import MAX_GROWTH_BYTES, Tally, find_faults, memory_course
from bench.soak_requests import SoakDraw, SoakRequest, judge
from bench.stream import Address, Answer

MIB = 2**20
GOOD = {
    "dedicate_num_requests_running": 0.0,
    "dedicate_num_requests_waiting": 0.0,
    "dedicate_kv_cache_free_blocks": 256.0,
    "dedicate_kv_cache_blocks": 256.0,
}


def answer(*events, status=200, is_whole=True, headers=None):
    return Answer(status=status, headers=headers or {}, events=tuple((0.0, e) for e in events), is_whole=is_whole)


def finished(index=0, reason="stop"):
    return {"choices": [{"index": index, "finish_reason": reason}]}


def request(**fields):
    return SoakRequest(kind="chat", endpoint="/chat/completions", body={}, **fields)


def test_good_answers_are_good():
    assert judge(request(), answer(finished())) is None
    assert judge(request(num_choices=2), answer(finished(1), finished(0, "length"))) is None
    assert judge(request(), answer(status=429, headers={"retry-after": "1"})) is None
    assert judge(request(expected_status=400), answer({"error": {"message": "no"}}, status=400)) is None


@pytest.mark.parametrize(
    ("asked", "got", "complaint"),
    [
        (request(), answer(finished(), is_whole=False), "breaks off"),
        (request(), answer(), "0 of 1 choices"),
        (request(num_choices=2), answer(finished()), "1 of 2 choices"),
        (request(), answer(finished(reason="error")), "finish_reason"),
        (request(), answer({"error": {"message": "x"}}), "an error"),
        (request(), answer(status=500), "status 500"),
        (request(), answer(status=429), "Retry-After"),
        (request(expected_status=400), answer(finished()), "not 400"),
        (request(expected_status=400), answer({}, status=400), "without a message"),
    ],
)
def test_each_fault_is_told(asked, got, complaint):
    assert complaint in judge(asked, got)


def test_the_draw_is_repeatable_and_has_every_kind():
    draws = [SoakDraw("model", seed=4) for _ in range(2)]
    first, second = ([draw.next() for _ in range(300)] for draw in draws)
    assert first == second
    assert len(Counter(one.kind for one in first)) == 7
    address = Address(host="h", port=1, path="/v1", api_key="k")
    for one in first:
        head, _, body = one.encode(address).partition(b"\r\n\r\n")
        assert f"Content-Length: {len(body)}\r\n".encode() in head + b"\r\n"


def test_a_soak_passes_only_if_nothing_is_left():
    flat = Tally(anonymous_bytes=[100 * MIB] * 50)
    assert find_faults(flat, GOOD) == []
    assert "3 of 256 blocks" in find_faults(flat, GOOD | {"dedicate_kv_cache_free_blocks": 253.0})[0]
    assert "waiting" in find_faults(flat, GOOD | {"dedicate_num_requests_waiting": 1.0})[0]
    assert "requests failed" in find_faults(Tally(faults=["chat: x"], anonymous_bytes=[1]), GOOD)[0]


def test_memory_may_rise_while_it_warms_up_and_not_after():
    warming = [MIB * step * 100 for step in range(10)] + [1000 * MIB] * 40
    assert find_faults(Tally(anonymous_bytes=warming), GOOD) == []
    leaking = [MIB * step * 10 for step in range(50)]
    start, _, end = memory_course(leaking)
    assert end - start > MAX_GROWTH_BYTES
    assert "memory grew" in find_faults(Tally(anonymous_bytes=leaking), GOOD)[0]
