"""What is sent: the same for everybody, from a seed."""

from __future__ import annotations

import itertools
import json

import pytest

from bench.load import LoadError, build_prompts, draw_arrivals, percentile, read_sample
from bench.stream import Address, Recording, parse


def count_words(text):
    return len(text.split())


class Words:
    """Stands for a tokenizer: a token is a word."""

    def encode(self, text, *, add_special_tokens):
        return type("Encoding", (), {"ids": text.split()})


def recorded(*pieces, content_type="text/event-stream", status=200):
    """A chunked answer, one read a piece, a tenth of a second apart."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    reads = tuple((0.1 * index, data) for index, data in enumerate([head, *chunks, b"0\r\n\r\n"]))
    return Recording(reads=reads, total_s=9.0)


def event(text, **extra):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}], **extra}).encode() + b"\n\n"


def test_prompts_have_the_length_that_is_promised_and_come_from_the_seed():
    prompts = list(build_prompts(5, 40, count_words))
    assert {50 <= count_words(prompt) <= 64 for prompt in prompts} == {True}
    assert prompts == list(build_prompts(5, 40, count_words))
    assert prompts != list(build_prompts(6, 40, count_words))
    assert len(set(prompts)) == 40


def test_arrivals_are_a_poisson_process_of_the_rate_that_was_asked_for():
    arrivals = draw_arrivals(1, 4000, 2.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(arrivals)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert arrivals == sorted(arrivals) == draw_arrivals(1, 4000, 2.0)
    assert mean == pytest.approx(0.5, rel=0.1)
    assert variance == pytest.approx(mean**2, rel=0.2)


@pytest.mark.parametrize(("share", "expected"), [(0.01, 1), (0.5, 5), (0.51, 6), (0.99, 10), (1.0, 10)])
def test_percentile_is_the_nearest_rank(share, expected):
    assert percentile([7, 3, 1, 10, 2, 8, 4, 6, 5, 9], share) == expected


def test_a_sample_takes_its_times_from_the_reads_and_its_count_from_the_server():
    usage = b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\ndata: [DONE]\n\n'
    sample = read_sample(recorded(event("one two"), event(" three"), usage), Words())
    assert (sample.ttft_s, sample.total_s, sample.text) == (0.1, 9.0, "one two three")
    assert sample.gaps_s == [pytest.approx(0.1)]
    assert (sample.num_tokens, sample.num_text_tokens) == (7, 3)


def test_events_are_found_wherever_the_bytes_are_cut():
    whole = event("a") + event("b") + b"data: [DONE]\n\n"
    for cut in range(1, len(whole)):
        answer = parse(recorded(whole[:cut], whole[cut:]))
        assert [e["choices"][0]["delta"]["content"] for _, e in answer.events] == ["a", "b"]
        assert answer.is_whole


def test_an_answer_that_breaks_off_is_not_whole():
    recording = recorded(event("a"))
    assert not parse(Recording(reads=recording.reads[:-1], total_s=1.0)).is_whole


def test_refusals_and_errors_in_a_stream_are_failures_of_the_load():
    with pytest.raises(LoadError, match="status 429"):
        read_sample(recorded(b'{"error": {}}', content_type="application/json", status=429), Words())
    with pytest.raises(LoadError, match="in the stream"):
        read_sample(recorded(event("a"), b'data: {"error": {"message": "broken"}}\n\n'), Words())
    with pytest.raises(LoadError, match="no text"):
        read_sample(recorded(b"data: [DONE]\n\n"), Words())


def test_a_request_says_how_long_it_is():
    request = Address(host="h", port=1, path="/v1", api_key="k").encode("/x", {"a": "ä"})
    head, _, body = request.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
