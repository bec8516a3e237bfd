"""Traces and the access log of a live runtime: what a collector gets, and that both tell the same."""

from __future__ import annotations

import os

import pytest

from dev.collector import Collector
from dev.model.api import MODEL_ID

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"
PATIENCE_S = 60
SERVER, INTERNAL = 2, 1
"""Kinds of spans, as OTLP numbers them."""


@pytest.fixture(scope="module")
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def traced(start_runtime, model_folder, collector):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    # The default of 5 s: what is asserted below was sent at the end.
    environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = collector.endpoint
    return start_runtime(model_folder, environment=environment).wait_ready()


def test_request_becomes_a_trace_with_the_engines_times(traced, collector):
    headers = traced.headers | {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01", "x-request-id": "mine"}
    body = {
        "model": MODEL_ID,
        "messages": [{"role": "user", "content": "Name three rivers."}],
        "max_tokens": 16,
        "temperature": 0,
    }
    answer = traced.post("/v1/chat/completions", body, headers=headers).json()
    refused = traced.post("/v1/chat/completions", body | {"model": "no/such"})
    assert refused.status_code == 404
    traced.terminate()
    assert traced.wait_end() == 0

    collector.wait_for(num_spans=5, deadline_s=PATIENCE_S)
    spans = {span.name: span for span in collector.spans if span.trace_id == TRACE_ID}
    assert set(spans) == {"POST /v1/chat/completions", "queue", "prefill", "decode"}
    server = spans["POST /v1/chat/completions"]
    assert (server.kind, server.parent_id, server.status) == (SERVER, PARENT_ID, 0)
    children = [spans[name] for name in ("queue", "prefill", "decode")]
    assert {(child.kind, child.parent_id) for child in children} == {(INTERNAL, server.span_id)}
    edges = [server.start_ns, children[0].start_ns, *(child.end_ns for child in children), server.end_ns]
    assert edges == sorted(edges)
    assert [child.start_ns for child in children[1:]] == [child.end_ns for child in children[:-1]]
    assert server.attributes["http.route"] == "/smollm/v1/chat/completions"
    assert server.attributes["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert server.attributes["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert server.attributes["gen_ai.response.id"] == answer["id"]
    assert server.attributes["gen_ai.response.finish_reasons"] == [answer["choices"][0]["finish_reason"]]
    assert server.resource["service.name"] == "dedicate-runtime"
    assert server.resource["dedicate.model"] == MODEL_ID

    line, other = traced.logged("request")
    assert (line["request_id"], line["trace_id"], line["status"]) == ("mine", TRACE_ID, 200)
    assert line["completion_tokens"] == answer["usage"]["completion_tokens"]
    assert line["queue_s"] + line["prefill_s"] + line["decode_s"] <= line["duration_s"]
    assert line["decode_s"] > 0
    assert line["decode_s"] == pytest.approx((children[2].end_ns - children[2].start_ns) / 1e9, abs=1e-5)
    assert other["error"] == "model_not_found"
    assert other["trace_id"] in {span.trace_id for span in collector.spans} - {TRACE_ID}
    assert "rivers" not in traced.log.read_text()
    assert traced.logged("traces are exported")[0]["collector"] == "127.0.0.1"


def test_unusable_variable_ends_the_start_with_its_name(start_runtime, model_folder, collector):
    environment = os.environ | {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    runtime = start_runtime(model_folder, environment=environment)
    assert runtime.wait_end() == 2
    assert "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf" in runtime.log.read_text()


def test_prompts_are_logged_where_asked_for(start_runtime, model_folder):
    runtime = start_runtime(model_folder, "--log-prompts").wait_ready()
    runtime.wait_logged("prompts and answers are written to the log", level="warning")
    answer = runtime.complete("The capital of France is", max_tokens=4)
    line = runtime.wait_logged("request")
    assert line["prompt"] == ["The capital of France is"]
    assert line["completion"] == [answer["choices"][0]["text"]]
