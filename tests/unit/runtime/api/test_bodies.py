"""What a body may hold, in which time it must come, and that it is refused before it costs anything."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import zlib
from pathlib import Path

import pytest
from starlette.requests import Request

from dedicate_runtime.api.body import MAX_BODY_BYTES, BodyReader
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.fields import MAX_ITEMS, MAX_MESSAGES
from dedicate_runtime.api.http_protocol import ConnectionLimits
from dedicate_runtime.api.json_text import MAX_DEPTH, MAX_DIGITS, MAX_MEMBERS, MAX_VALUES, parse_json
from dedicate_runtime.api.template_budget import MAX_CHARACTERS

KEYS = {"message", "type", "param", "code"}
ENDPOINTS = {
    "v1/chat/completions": {"model": "unit/test", "messages": [{"role": "user", "content": "Hi"}]},
    "v1/completions": {"model": "unit/test", "prompt": "Hi"},
    "tokenize": {"prompt": "Hi"},
    "detokenize": {"tokens": [1]},
}


def refusal(body):
    with pytest.raises(ApiError) as caught:
        parse_json(body)
    return caught.value.status, caught.value.message


async def post(api, body, path="v1/completions", **headers):
    return await api.client.post(f"/unit/{path}", content=body, headers=headers)


def envelope(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == KEYS
    return error


class TestCost:
    """Each body is one over a limit; the one below it passes."""

    @pytest.mark.parametrize(
        ("make", "limit", "status", "told"),
        [
            (lambda n: b"[" + b"1," * (n - 1) + b"1]", MAX_VALUES, 413, f"{MAX_VALUES} values"),
            (lambda n: b"[" + b"[]," * (n - 2) + b"[]]", MAX_MEMBERS, 413, f"{MAX_MEMBERS} lists"),
            (lambda n: b"[" + b"{}," * (n - 2) + b"{}]", MAX_MEMBERS, 413, f"{MAX_MEMBERS} lists"),
            (
                lambda n: b"{" + b",".join(b'"%d":1' % i for i in range(n - 1)) + b"}",
                MAX_MEMBERS,
                413,
                f"{MAX_MEMBERS} lists",
            ),
            (lambda n: b"[" * n + b"]" * n, MAX_DEPTH, 400, f"{MAX_DEPTH} levels"),
            (lambda n: b'{"a":' * n + b"1" + b"}" * n, MAX_DEPTH, 400, f"{MAX_DEPTH} levels"),
            (lambda n: b"[0." + b"1" * n + b"]", MAX_DIGITS, 400, f"{MAX_DIGITS} digits"),
            (lambda n: b'["a",' + b"1" * n + b"e-300]", MAX_DIGITS, 400, f"{MAX_DIGITS} digits"),
        ],
        ids=["numbers", "lists", "objects", "fields", "deep lists", "deep objects", "fraction", "long number"],
    )
    def test_limit(self, make, limit, status, told):
        parse_json(make(limit))
        got, message = refusal(make(limit + 1))
        assert got == status
        assert told in message

    @pytest.mark.parametrize("times", [65, 1000, 10_000, 100_000])
    def test_any_depth_is_refused_alike(self, times):
        assert refusal(b'{"messages":[' * times)[0] in {400, 413}
        assert refusal(b'{"a":' * times + b"1" + b"}" * times)[0] in {400, 413}

    def test_nothing_is_built_of_the_largest_body_of_lists(self):
        """Of 32 MiB of `[],` would be 770 MiB of lists."""
        assert refusal(b"[" + b"[]," * (MAX_BODY_BYTES // 3))[0] == 413

    @pytest.mark.parametrize(
        "text",
        ["[{,:" * 400_000, "1" * 1000, '\\"[,{:' * 200_000, "\\\\" * 1000 + "9" * 100, '{"a": ' + "0" * 80 + "}"],
        ids=["brackets", "digits", "quotes", "backslashes", "JSON"],
    )
    def test_text_in_strings_does_not_count(self, text):
        body = json.dumps({"prompt": text, "other": ["]", text[:10]]}).encode()
        assert parse_json(body) == {"prompt": text, "other": ["]", text[:10]]}

    def test_what_stands_between_strings_counts(self):
        long = b"7" * (MAX_DIGITS + 1)
        for body in (
            b'["\\\\",' + long + b"]",
            b'["\\"",' + long + b"]",
            b'["a\\\\\\"", ' + long + b"]",
            b'{"": ' + long,
        ):
            assert "digits" in refusal(body)[1]

    @pytest.mark.parametrize(
        ("path", "fields", "param", "told"),
        [
            ("v1/chat/completions", {"messages": [{}] * 10_001}, "messages", "10000 messages"),
            ("tokenize", {"prompt": None, "messages": [{}] * 10_001}, "messages", "10000 messages"),
            ("v1/completions", {"stop": ["a"] * 1025}, "stop", "1024 stops"),
            ("v1/completions", {"stop": ["a" * 1025]}, "stop", "1024 characters"),
            ("v1/completions", {"stop_token_ids": [1] * 1025}, "stop_token_ids", "1024 token ids"),
            ("v1/completions", {"end_id": [1] * 1025}, "end_id", "1024 token ids"),
            ("v1/completions", {"prompt": ["a"] * 1025}, "prompt", "1024 prompts"),
            ("v1/completions", {"prompt": [[1]] * 1025}, "prompt", "1024 prompts"),
            ("v1/completions", {"logit_bias": dict.fromkeys(map(str, range(1025)), 0)}, "logit_bias", "1024 token"),
            (
                "v1/chat/completions",
                {"messages": [{"role": "assistant", "tool_calls": [{}] * 1025}]},
                "messages[0].tool_calls",
                "1024 tool calls",
            ),
        ],
    )
    async def test_lists_are_limited(self, api, path, fields, param, told):
        response = await api.client.post(f"/unit/{path}", json={**ENDPOINTS[path], **fields})
        error = envelope(response, 400)
        assert error["param"] == param
        assert told in error["message"]

    async def test_one_fault_of_many_is_told(self, api):
        """To note each of a million took twelve seconds."""
        error = envelope(
            await api.client.post("/unit/v1/chat/completions", json={"model": "a", "messages": [0] * 9999}), 400
        )
        assert error["param"] == "messages[0]"

    @pytest.mark.parametrize("field", ["model", "logit_bias", "role"])
    async def test_errors_quote_no_more_than_a_line(self, api, field):
        long = "x" * 100_000
        body = {
            "model": long if field == "model" else "unit/test",
            "messages": [{"role": long if field == "role" else "user", "content": "Hi"}],
            "logit_bias": {long: "a"} if field == "logit_bias" else {},
        }
        response = await api.client.post("/unit/v1/chat/completions", json=body)
        assert response.status_code in {400, 404}
        assert len(response.content) < 2000
        path = await api.client.get(f"/unit/v1/models/{long[:7000]}")
        assert (path.status_code, len(path.content) < 2000) == (404, True)


class TestText:
    @pytest.mark.parametrize("path", ENDPOINTS)
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b" ",
            b"\xef\xbb\xbf",
            json.dumps({"model": "unit/test"}).encode("utf-16"),
            json.dumps({"model": "unit/test"}).encode("utf-16-be"),
            json.dumps({"model": "unit/test"}).encode("utf-32"),
            b'{"model": "\xed\xa0\x80"}',
            b'{"model": "\\ud800"}',
            b'{"\\udc00": 1}',
            b'{"model": "\xc0\xaf"}',
            b'{"model": "a\nb"}',
            b"{'model': 1}",
            b'{"model": 1,}',
            b'{"model": 01}',
            b'{"model": 1} {}',
            b"// comment\n{}",
        ],
        ids=repr,
    )
    async def test_what_is_no_json_is_400(self, api, path, body):
        error = envelope(await post(api, body, path), 400)
        assert error["type"] == "invalid_request_error"

    @pytest.mark.parametrize(
        "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 60, "1e400", "9" * 4000]
    )
    @pytest.mark.parametrize("field", ["temperature", "max_tokens", "seed", "logprobs", "top_k", "n"])
    async def test_numbers_out_of_range_are_400(self, api, field, number):
        envelope(await post(api, f'{{"model": "unit/test", "prompt": "Hi", "{field}": {number}}}'.encode()), 400)

    async def test_other_encodings_are_named(self, api):
        body = json.dumps(ENDPOINTS["v1/completions"]).encode("utf-16")
        assert "UTF-8" in envelope(await post(api, body), 400)["message"]

    async def test_byte_order_mark_is_skipped(self, api):
        body = b"\xef\xbb\xbf" + json.dumps(ENDPOINTS["v1/completions"]).encode()
        assert (await post(api, body)).status_code == 200

    async def test_last_of_equal_keys_counts(self, api):
        body = b'{"model": "nobody", "prompt": "a", "model": "unit/test", "seed": 7, "seed": 8}'
        assert (await post(api, body)).status_code == 200
        assert api.sampling.seed == 8

    async def test_surrogate_pairs_are_characters(self, api):
        response = await post(api, b'{"prompt": "\\ud83d\\ude00"}', "tokenize")
        assert response.json()["count"] == 1 + len("😀".encode())


class TestTransfer:
    @pytest.mark.parametrize(
        ("encoding", "body"),
        [
            ("gzip", gzip.compress(b" " * 10_000_000)),
            ("deflate", zlib.compress(b" " * 10_000_000)),
            ("br", b"\x0b\x02\x80"),
            ("zstd", b"\x28\xb5\x2f\xfd"),
            ("GZIP", b""),
            ("identity, gzip", b""),
            ("x" * 5000, b""),
        ],
    )
    async def test_compressed_bodies_are_415(self, api, encoding, body):
        response = await post(api, body, **{"content-encoding": encoding})
        envelope(response, 415)
        assert response.headers["accept-encoding"] == "identity"

    async def test_second_encoding_header_counts(self, api):
        headers = [("content-encoding", "identity"), ("content-encoding", "gzip")]
        response = await api.client.post("/unit/v1/completions", content=b"{}", headers=headers)
        envelope(response, 415)

    async def test_chunked_body_without_length(self, api):
        async def parts():
            for byte in json.dumps(ENDPOINTS["v1/completions"]).encode():
                yield bytes([byte])

        assert (await api.client.post("/unit/v1/completions", content=parts())).status_code == 200

    async def test_large_body_is_read_like_a_small_one(self, api):
        body = {**ENDPOINTS["v1/completions"], "metadata": "x" * 1_000_000}
        assert (await api.client.post("/unit/v1/completions", json=body)).status_code == 200
        error = envelope(await api.client.post("/unit/v1/completions", json={**body, "top_p": 7}), 400)
        assert error["param"] == "top_p"


def request_of(*messages, headers=()):
    """A request whose body comes in these parts, and then, unless the last says so, no further."""
    parts = list(messages)

    async def receive():
        if not parts:
            await asyncio.Event().wait()
        return parts.pop(0)

    return Request({"type": "http", "method": "POST", "headers": list(headers)}, receive)


def part(body, *, is_last=False):
    return {"type": "http.request", "body": body, "more_body": not is_last}


async def read(reader, request):
    async with reader.hold(request) as body:
        return body


class TestHolding:
    async def test_slow_body_is_408_and_its_bytes_are_free(self):
        reader = BodyReader(timeout_s=0.02)
        with pytest.raises(ApiError) as caught:
            await read(reader, request_of(part(b"x" * 100)))
        assert (caught.value.status, caught.value.headers) == (408, {"Connection": "close"})
        assert "0.02 s" in caught.value.message
        assert reader.num_held_bytes == 0

    async def test_bodies_together_are_bounded(self):
        reader = BodyReader(max_held_bytes=1000)
        async with reader.hold(request_of(part(b"x" * 900, is_last=True))):
            with pytest.raises(ApiError) as caught:
                await read(reader, request_of(part(b"x" * 200, is_last=True)))
            assert (caught.value.status, caught.value.code) == (503, "too_many_bodies")
            assert 0 < int(caught.value.headers["Retry-After"]) <= 120
            assert reader.num_held_bytes == 900
        assert reader.num_held_bytes == 0
        assert await read(reader, request_of(part(b"x" * 200, is_last=True))) == b"x" * 200

    async def test_body_that_is_cut_off_is_400_and_its_bytes_are_free(self):
        reader = BodyReader()
        with pytest.raises(ApiError) as caught:
            await read(reader, request_of(part(b"x" * 900), {"type": "http.disconnect"}))
        assert (caught.value.status, reader.num_held_bytes) == (400, 0)

    async def test_fault_while_parsing_frees_the_bytes(self):
        reader = BodyReader()
        with pytest.raises(ZeroDivisionError):
            async with reader.hold(request_of(part(b"x" * 900, is_last=True))):
                raise ZeroDivisionError
        assert reader.num_held_bytes == 0

    async def test_declared_length_over_the_limit_is_413_unread(self):
        request = request_of(headers=[(b"content-length", str(MAX_BODY_BYTES + 1).encode())])
        with pytest.raises(ApiError) as caught:
            await read(BodyReader(), request)
        assert caught.value.status == 413


def test_limits_are_the_documented_ones():
    page = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
    section = page.split("\n## What is refused before it is read\n")[1].split("\n## ")[0]
    told = dict(re.findall(r"^\| (.+?) \| (.+?) \|", section, re.MULTILINE))
    connection = ConnectionLimits()
    kibibytes = f"{connection.max_head_bytes // 1024} KiB, {connection.max_headers} headers, "
    assert told["connections"].startswith(str(connection.max_connections))
    assert told["silence before a request, or time for its line and headers"] == f"{connection.head_timeout_s:g} s"
    assert told["request line and headers"].startswith(kibibytes + f"{connection.max_target_bytes // 1024} KiB")
    assert told["requests that wait for the answer before them"] == str(connection.max_pipelined)
    assert told["time in which a client takes nothing of its answer"] == f"{connection.stalled_reader_s:g} s"
    assert told["body"].startswith(f"{MAX_BODY_BYTES // 2**20} MiB in 60 s")
    assert told["bodies that are being read, together"] == f"{8 * MAX_BODY_BYTES // 2**20} MiB"
    assert told["values in a body"] == f"{MAX_VALUES:,}"
    assert told["lists, objects and fields in a body"] == f"{MAX_MEMBERS:,}"
    assert told["nesting"] == f"{MAX_DEPTH} levels"
    assert told["digits of a number"] == str(MAX_DIGITS)
    assert told["`messages`"] == f"{MAX_MESSAGES:,}"
    (items,) = (limit for what, limit in told.items() if what.startswith("`stop`, "))
    assert items == str(MAX_ITEMS)
    assert told["a chat template's work"] == f"5 s, {MAX_CHARACTERS:,} characters"
