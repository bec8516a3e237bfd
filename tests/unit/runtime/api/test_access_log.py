"""The access log: what a line says of each way in which a request can end, and what it never says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from dedicate_runtime.api.access_log import MAX_TEXT_BYTES
from dedicate_runtime.api.management import create_management_app
from dedicate_runtime.api.middleware import RequestMiddleware
from dedicate_runtime.logs import JsonFormatter
from dedicate_runtime.metrics import Metrics

RUNBOOK = Path(__file__).parents[4] / "docs" / "runbook.md"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
PATIENCE_S = 30


@pytest.fixture
def lines(caplog):
    """Give the lines that were written since, as whoever collects them gets them."""
    caplog.set_level(logging.INFO)

    def read():
        records = [record for record in caplog.records if record.name == "dedicate_runtime.access"]
        return [json.loads(JsonFormatter().format(record)) for record in records]

    return read


@pytest.mark.parametrize("stream", [False, True])
async def test_line_of_an_answer(make_api, make_times, lines, stream):
    api = make_api()
    api.script(times=(make_times(1.0, 1.5, 1.75, 3.0), make_times(1.0, 2.0, 2.25, 4.0)))
    await api.client.post(
        "/unit/v1/completions?key=hidden",
        json={"model": "alias", "prompt": "Hi", "n": 2, "max_tokens": 5, "stream": stream},
        headers={"x-request-id": "mine", "traceparent": TRACEPARENT},
    )
    (line,) = lines()
    measured = {name: line.pop(name) for name in ("duration_s", "time_to_first_byte_s", "time_to_first_token_s")}
    assert measured["duration_s"] >= measured["time_to_first_byte_s"] >= 0
    assert measured["duration_s"] >= measured["time_to_first_token_s"] >= 0
    assert line.pop("time")
    assert line == {
        "level": "info",
        "logger": "dedicate_runtime.access",
        "message": "request",
        "request_id": "mine",
        "trace_id": TRACE_ID,
        "key_id": "alice",
        "method": "POST",
        "route": "/v1/completions",
        "path": "/unit/v1/completions",
        "status": 200,
        "client_left": False,
        "model": "alias",
        "stream": stream,
        "choices": 2,
        "finish_reasons": {"length": 2},
        "prompt_tokens": 3,
        "completion_tokens": 10,
        "queue_s": 1.0,
        "prefill_s": 0.75,
        "decode_s": 2.25,
    }


REFUSALS = {
    "wrong key": ({"headers": {"Authorization": "Bearer sk-wrong"}}, 401, "invalid_api_key"),
    "malformed": ({"content": b"{"}, 400, "invalid_request_error"),
    "another model": ({"json": {"model": "no/such", "prompt": "Hi"}}, 404, "model_not_found"),
    "over the context": ({"json": {"model": "unit/test", "prompt": "x" * 500}}, 400, "context_length_exceeded"),
    "compressed": ({"content": b"", "headers": {"content-encoding": "gzip"}}, 415, "invalid_request_error"),
}


@pytest.mark.parametrize("what", REFUSALS)
async def test_line_of_a_refusal_says_why(api, lines, what):
    request, status, error = REFUSALS[what]
    await api.client.post("/unit/v1/completions", **request)
    (line,) = lines()
    assert (line["status"], line["error"], line["client_left"]) == (status, error, False)
    assert line.get("key_id") == (None if status == 401 else "alice")
    assert "model" not in line
    assert api.metrics.registry.get_sample_value("dedicate_request_errors_total", {"code": error}) == 1


async def test_line_of_what_is_refused_for_want_of_room_says_what_was_asked_for(api, lines):
    api.script(queue_full=True)
    await api.chat(stream=True, n=3)
    (line,) = lines()
    assert (line["status"], line["error"]) == (429, "queue_full")
    assert (line["model"], line["stream"], line["choices"], line["finish_reasons"]) == ("unit/test", True, 3, {})
    assert (line["prompt_tokens"], line["completion_tokens"]) == (0, 0)
    assert api.metrics.registry.get_sample_value("dedicate_streams_open") == 0


async def test_line_of_no_such_path(api, lines):
    await api.client.get("/nowhere")
    (line,) = lines()
    assert (line["route"], line["path"], line["status"]) == ("unmatched", "/nowhere", 404)
    assert line["error"] == "invalid_request_error"


@pytest.mark.parametrize("stream", [False, True])
async def test_line_of_a_failure_on_the_way(api, lines, stream):
    api.script(fail_after=2)
    await api.chat(stream=stream)
    (line,) = lines()
    assert line["status"] == (200 if stream else 500)
    assert (line["error"], line["client_left"], line["finish_reasons"]) == ("internal_error", False, {})
    assert line["completion_tokens"] == 2


async def test_fault_of_ours_is_logged_with_the_ids_of_its_request(api, lines, caplog, monkeypatch):
    monkeypatch.setattr(api.engine, "submit", None)
    await api.client.post(
        "/unit/v1/completions",
        json={"model": "unit/test", "prompt": "Hi"},
        headers={"x-request-id": "mine", "traceparent": TRACEPARENT},
    )
    (fault,) = [record for record in caplog.records if record.exc_info]
    assert (fault.request_id, fault.trace_id) == ("mine", TRACE_ID)
    (line,) = lines()
    assert (line["status"], line["error"]) == (500, "internal_error")


@pytest.mark.parametrize("stream", [False, True])
async def test_line_of_a_client_that_left(api, lines, stream):
    api.script(hang_after=2)
    sent = []

    async def receive():
        if not sent:
            sent.append(True)
            body = {"model": "unit/test", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
            return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}
        await api.engine.is_hanging.wait()
        return {"type": "http.disconnect"}

    async def send(_message):
        pass

    async with asyncio.timeout(PATIENCE_S):
        await api.app(scope_of("/unit/v1/chat/completions", api.client.headers), receive, send)
    (line,) = lines()
    assert line["client_left"] is True
    assert line["status"] == (200 if stream else 499)
    assert line["completion_tokens"] == 2
    assert "error" not in line
    assert api.metrics.registry.get_sample_value("dedicate_client_disconnects_total") == 1
    assert api.metrics.registry.get_sample_value("dedicate_streams_open") == 0


def scope_of(path, headers, method="POST"):
    raw = [(name.lower().encode(), value.encode()) for name, value in dict(headers).items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": b"/",
        "query_string": b"secret=1",
        "headers": raw,
        "server": ("127.0.0.1", 80),
    }


async def answer_nothing(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize(
    "text", ['/a\n{"message": "forged"}', "/\x1b[31m\x00", "/\u2028\u202e", "/\ud800", "/" + "x" * 100_000]
)
async def test_line_holds_nothing_that_a_client_can_forge_or_swell(lines, text):
    app = RequestMiddleware(answer_nothing, metrics=Metrics(CollectorRegistry()), prefix="/unit")
    headers = {
        "x-request-id": "x" * 100_000,
        "traceparent": f"00-{TRACE_ID}-{'0' * 16}-01",
        "user-agent": "y" * 100_000,
        "x-forwarded-for": "203.0.113.7",
    }

    async def send(_message):
        pass

    await app(scope_of(text, headers), None, send)
    (line,) = lines()
    assert line["path"] == text[:512]
    assert line["request_id"].startswith("req-")
    assert "trace_id" not in line
    assert len(json.dumps(line)) < 5_000
    assert not re.search("yyy|203|secret", json.dumps(line))


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "00",
        TRACEPARENT.upper(),
        TRACEPARENT + "-more",
        TRACEPARENT.replace("00-", "ff-", 1),
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        TRACEPARENT.replace("-", "_"),
    ],
)
async def test_malformed_trace_context_is_ignored(api, lines, traceparent):
    await api.client.get("/unit/health", headers={"traceparent": traceparent})
    assert "trace_id" not in lines()[0]


async def test_two_trace_contexts_are_none(api, lines):
    await api.client.get("/unit/health", headers=[("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)])
    assert "trace_id" not in lines()[0]


async def test_trace_context_of_a_later_version_counts(api, lines):
    await api.client.get("/unit/health", headers={"traceparent": TRACEPARENT.replace("00-", "01-", 1) + "-more"})
    assert lines()[0]["trace_id"] == TRACE_ID


async def test_keys_and_texts_are_in_no_record(api, caplog):
    caplog.set_level(logging.DEBUG)
    api.script(text="the answer")
    wrong = {"Authorization": "Bearer sk-wrong"}
    for headers in ({}, wrong, {"Autherization": "sk-wrong"}, {"Authorization": "sk-wrong"}):
        await api.client.post(
            "/unit/v1/chat/completions?api_key=sk-query",
            json={"model": "unit/test", "messages": [{"role": "user", "content": "the question"}]},
            headers=headers,
        )
        await api.client.post("/unit/v1/completions", json={"model": "the question", "prompt": 7}, headers=headers)
    told = "".join(JsonFormatter().format(record) for record in caplog.records if not record.name.startswith("httpx"))
    assert told.count('"request"') == 8
    assert not re.search("sk-|question|the answer", told)


@pytest.mark.parametrize("stream", [False, True])
async def test_prompts_and_answers_are_logged_where_asked_for(make_api, lines, stream):
    api = make_api("--log-prompts")
    api.script(text="fine")
    messages = [
        {"role": "system", "content": "be\nbrief"},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    await api.client.post(
        "/unit/v1/chat/completions", json={"model": "unit/test", "messages": messages, "n": 2, "stream": stream}
    )
    await api.complete("raw", stream=stream)
    await api.complete([72, 105], stream=stream)
    chat, text, ids = lines()
    assert chat["prompt"] == [{"role": "system", "content": "be\nbrief"}, {"role": "user", "content": "Hi"}]
    assert chat["completion"] == ["fine", "fine"]
    assert (text["prompt"], text["completion"]) == (["raw"], ["fine"])
    assert ids["prompt"] == [[72, 105]]


async def test_long_prompt_is_cut_in_the_log(make_api, lines):
    api = make_api("--log-prompts", context=200_000)
    await api.complete("\u00e9" * 60_000)
    prompt = lines()[0]["prompt"]
    assert prompt.startswith('["\u00e9\u00e9')
    assert prompt.endswith("more bytes]")
    assert MAX_TEXT_BYTES - 2 <= len(prompt.split("...")[0].encode()) <= MAX_TEXT_BYTES


async def test_probes_are_not_logged(api, lines):
    app = create_management_app(api.readiness, api.metrics.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://unit.test") as client:
        for path in ("/healthz", "/readyz", "/startupz", "/metrics"):
            assert (await client.get(path)).status_code == 200
    assert lines() == []


async def test_fields_are_those_of_the_runbook(make_api, make_times, lines):
    api = make_api("--log-prompts")
    api.script(times=(make_times(1.0, 1.5, 1.75, 3.0),), fail_after=3)
    await api.client.post(
        "/unit/v1/completions",
        json={"model": "unit/test", "prompt": "Hi", "stream": True},
        headers={"traceparent": TRACEPARENT},
    )
    section = RUNBOOK.read_text().split("## The access log")[1].split("\n## ")[0]
    cells = " ".join(re.findall(r"^\| (.+?) \|", section, re.MULTILINE))
    assert set(re.findall(r"`(\w+)`", cells)) == set(lines()[0])
