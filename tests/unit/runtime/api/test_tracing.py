"""The spans of a request: names, parents, times, attributes, and what they never hold."""

from __future__ import annotations

import json
import logging
import re

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from dedicate_runtime.api.tracing import Tracer

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"


def traceparent(flags="01"):
    return {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-{flags}"}


class Traced:
    """An application with a tracer, and the spans that it made."""

    def __init__(self, make_api, *options, sampler=DEFAULT_ON, **fields):
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.exporter = InMemorySpanExporter()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.api = make_api(*options, tracer=Tracer(provider), **fields)

    @property
    def spans(self):
        return {span.name: span for span in self.exporter.get_finished_spans()}

    @property
    def server(self):
        (span,) = [span for span in self.exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        return span


@pytest.fixture
def traced(make_api):
    return Traced(make_api)


@pytest.mark.parametrize("stream", [False, True])
async def test_server_span_of_an_answer(traced, stream):
    await traced.api.client.post(
        "/unit/v1/chat/completions?secret=1",
        json={
            "model": "alias",
            "messages": [{"role": "user", "content": "Hi"}],
            "n": 2,
            "max_tokens": 5,
            "temperature": 0.5,
            "seed": 7,
            "stream": stream,
        },
        headers={"x-request-id": "mine", "user-agent": "unit/1"},
    )
    span = traced.server
    assert span.name == "POST /v1/chat/completions"
    assert span.parent is None
    assert span.status.status_code is StatusCode.UNSET
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.response.id").startswith("chatcmpl-")
    assert attributes.pop("gen_ai.latency.time_to_first_token") > 0
    assert attributes == {
        "http.request.method": "POST",
        "http.route": "/unit/v1/chat/completions",
        "http.response.status_code": 200,
        "url.path": "/unit/v1/chat/completions",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "server.address": "unit.test",
        "user_agent.original": "unit/1",
        "dedicate.request_id": "mine",
        "dedicate.key_id": "alice",
        "dedicate.client_left": False,
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "dedicate",
        "gen_ai.request.model": "alias",
        "gen_ai.request.stream": stream,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.7,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.0,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.response.model": "unit/test",
        "gen_ai.response.finish_reasons": ("length", "length"),
        "gen_ai.usage.input_tokens": 20,
        "gen_ai.usage.output_tokens": 10,
    }


async def test_phases_are_children_with_the_engines_times(traced, make_times):
    traced.api.script(times=(make_times(10.0, 10.5, 11.25, 13.0),))
    await traced.api.complete()
    spans, server = traced.spans, traced.server
    assert set(spans) == {server.name, "queue", "prefill", "decode"}
    for name in ("queue", "prefill", "decode"):
        assert spans[name].parent == server.context
        assert spans[name].kind is SpanKind.INTERNAL
    lasted = {name: round((spans[name].end_time - spans[name].start_time) / 1e9, 6) for name in spans}
    assert (lasted["queue"], lasted["prefill"], lasted["decode"]) == (0.5, 0.75, 1.75)
    assert spans["queue"].end_time == spans["prefill"].start_time
    assert spans["prefill"].end_time == spans["decode"].start_time
    told = {name: value for name, value in server.attributes.items() if name.startswith("gen_ai.latency.time_in")}
    assert told == {
        "gen_ai.latency.time_in_queue": 0.5,
        "gen_ai.latency.time_in_model_prefill": 0.75,
        "gen_ai.latency.time_in_model_decode": 1.75,
    }


async def test_number_of_spans_does_not_grow_with_tokens_or_choices(traced, make_times):
    traced.api.script(text="x" * 60, times=(make_times(1.0, 2.0, 3.0, 4.0),) * 8)
    await traced.api.chat(stream=True, n=8)
    assert len(traced.exporter.get_finished_spans()) == 4


async def test_trace_of_the_client_goes_on(traced, caplog):
    caplog.set_level(logging.INFO)
    await traced.api.client.get("/unit/v1/models", headers=traceparent() | {"tracestate": "vendor=1"})
    span = traced.server
    assert format_trace_id(span.context.trace_id) == TRACE_ID
    assert format_span_id(span.parent.span_id) == PARENT_ID
    assert span.parent.is_remote
    assert span.context.trace_state.to_header() == "vendor=1"
    (record,) = [record for record in caplog.records if record.name == "dedicate_runtime.access"]
    assert record.trace_id == TRACE_ID


async def test_trace_id_of_a_new_trace_is_in_the_access_log(traced, caplog):
    caplog.set_level(logging.INFO)
    await traced.api.client.get("/unit/v1/models")
    (record,) = [record for record in caplog.records if record.name == "dedicate_runtime.access"]
    assert record.trace_id == format_trace_id(traced.server.context.trace_id)


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "nonsense"},
        {"traceparent": f"00-{'0' * 32}-{PARENT_ID}-01"},
        {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01" + "x" * 10_000},
        [("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01")] * 2,
    ],
)
async def test_malformed_context_begins_a_new_trace(traced, headers):
    response = await traced.api.client.get("/unit/v1/models", headers=headers)
    assert response.status_code == 200
    assert traced.server.parent is None
    assert format_trace_id(traced.server.context.trace_id) != TRACE_ID


async def test_malformed_state_does_not_lose_the_trace(traced):
    await traced.api.client.get("/unit/v1/models", headers=traceparent() | {"tracestate": "\x01=\x02," * 100})
    assert format_trace_id(traced.server.context.trace_id) == TRACE_ID


async def test_what_the_client_does_not_sample_is_not_exported_but_told_in_the_log(traced, caplog):
    caplog.set_level(logging.INFO)
    await traced.api.client.get("/unit/v1/models", headers=traceparent("00"))
    assert traced.exporter.get_finished_spans() == ()
    assert [record.trace_id for record in caplog.records if record.name == "dedicate_runtime.access"] == [TRACE_ID]


async def test_sampler_decides(make_api):
    traced = Traced(make_api, sampler=ALWAYS_OFF)
    await traced.api.client.get("/unit/v1/models", headers=traceparent())
    assert traced.exporter.get_finished_spans() == ()


async def test_refusal_is_no_error_of_the_server(traced):
    traced.api.script(queue_full=True)
    await traced.api.chat()
    span = traced.server
    assert span.status.status_code is StatusCode.UNSET
    assert (span.attributes["http.response.status_code"], span.attributes["dedicate.error"]) == (429, "queue_full")
    assert "error.type" not in span.attributes


@pytest.mark.parametrize("stream", [False, True])
async def test_failure_is_an_error_of_the_server_in_a_stream_too(traced, stream):
    traced.api.script(fail_after=2)
    await traced.api.chat(stream=stream)
    span = traced.server
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes["http.response.status_code"] == (200 if stream else 500)
    assert span.attributes["error.type"] == "internal_error"
    assert span.attributes["gen_ai.response.finish_reasons"] == ()


async def test_no_such_path_has_no_route(traced):
    await traced.api.client.request("BREW", "/" + "x" * 10_000)
    span = traced.server
    assert span.name == "HTTP"
    assert span.attributes["http.request.method"] == "_OTHER"
    assert "http.route" not in span.attributes
    assert len(span.attributes["url.path"]) == 256


@pytest.mark.parametrize(
    ("host", "address", "port"),
    [("llm.example.com", "llm.example.com", None), ("[::1]:8000", "[::1]", 8000), ("a" * 1000, "a" * 256, None)],
)
async def test_server_address_is_the_host_that_was_asked_for(traced, host, address, port):
    await traced.api.client.get("/unit/health", headers={"host": host})
    attributes = traced.server.attributes
    assert (attributes["server.address"], attributes.get("server.port")) == (address, port)


async def test_spans_hold_neither_keys_nor_texts_even_where_prompts_are_logged(make_api):
    traced = Traced(make_api, "--log-prompts")
    traced.api.script(text="the answer", fail_after=4)
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}):
        await traced.api.client.post(
            "/unit/v1/completions?key=sk-query",
            json={"model": "unit/test", "prompt": "the question", "stop": ["the stop"], "user": "the user"},
            headers=headers,
        )
    told = "".join(span.to_json() for span in traced.exporter.get_finished_spans())
    assert json.loads(traced.exporter.get_finished_spans()[0].to_json())["name"] == "POST /v1/completions"
    assert not re.search("sk-|question|answer|the stop|the user", told)
