"""Export by OTLP: to a real collector, to some that are none, and nothing of it where none is named."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys

import pytest

from dedicate_runtime.api.trace_context import wants_traces
from dedicate_runtime.api.trace_export import start_trace_export
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.settings import parse_settings
from dev.collector import Collector

PATIENCE_S = 60
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
HEAVY = ("opentelemetry.sdk", "opentelemetry.exporter", "dedicate_runtime.api.tracing", "requests", "google.protobuf")
"""OpenTelemetry's API alone comes with FastAPI."""
SECRET = "sk-of-the-collector"


@pytest.fixture
def settings():
    return parse_settings(
        ["--model", "/m", "--served-model-name", "unit/test", "--dedicate", "unit", "--auth", "none"], {}
    )


@pytest.fixture
def collector():
    with Collector() as collector:
        yield collector


@pytest.fixture
def environment(monkeypatch):
    """Set OpenTelemetry's variables, which it reads from the process; what it was told before is gone."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    for name in ("opentelemetry", "opentelemetry.util.re"):
        logging.getLogger(name).setLevel(logging.NOTSET)

    def set_(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return os.environ

    return set_


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, False),
        ({ENDPOINT: ""}, False),
        ({ENDPOINT: "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_SERVICE_NAME": "x", "OTEL_TRACES_SAMPLER": "always_on"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": " True"}, False),
        ({ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "false"}, True),
        ({ENDPOINT: "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_traces_are_wanted_where_a_collector_is_named(variables, wanted):
    assert wants_traces(variables) is wanted


def test_nothing_of_it_is_loaded_where_none_is_named():
    program = f"""
import sys, dedicate_runtime.__main__, dedicate_runtime.serving
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S)


async def test_spans_reach_the_collector(make_api, settings, collector, environment):
    variables = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS=f"Authorization=Bearer%20{SECRET}",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=unit,k8s.pod.name=pod-1",
    )
    export = start_trace_export(settings, variables)
    api = make_api(tracer=export.tracer)
    await api.complete()
    await api.client.get("/unit/health")
    await export.aclose()
    assert {span.name for span in collector.spans} == {"POST /v1/completions", "GET /health"}
    (completion, _) = sorted(collector.spans, key=lambda span: span.start_ns)
    assert completion.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert completion.end_ns > completion.start_ns
    resource = completion.resource
    assert resource["service.name"] == "dedicate-runtime"
    assert (resource["dedicate.name"], resource["dedicate.model"]) == ("unit", "unit/test")
    assert resource["service.version"]
    assert resource["service.instance.id"] == socket.gethostname()
    assert (resource["deployment.environment.name"], resource["k8s.pod.name"]) == ("unit", "pod-1")
    assert {headers["authorization"] for headers in collector.headers} == {f"Bearer {SECRET}"}
    assert (export.num_ended, export.num_exported) == (2, 2)


async def test_environment_names_the_service(make_api, settings, collector, environment):
    variables = environment(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.endpoint}/v1/traces", OTEL_SERVICE_NAME="mine"
    )
    export = start_trace_export(settings, variables)
    await make_api(tracer=export.tracer).client.get("/unit/health")
    await export.aclose()
    assert collector.spans[0].resource["service.name"] == "mine"


async def test_environment_chooses_the_sampler(make_api, settings, collector, environment):
    variables = environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint, OTEL_TRACES_SAMPLER="always_off")
    export = start_trace_export(settings, variables)
    await make_api(tracer=export.tracer).client.get("/unit/health")
    await export.aclose()
    assert (collector.spans, export.num_ended) == ([], 0)


def told(caplog, message):
    return [record for record in caplog.records if record.getMessage() == message]


async def test_collector_that_fails_is_told_once_and_once_when_it_is_back(
    make_api, settings, collector, environment, caplog
):
    caplog.set_level(logging.INFO)
    collector.status = 401
    variables = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS=f"Authorization=Bearer {SECRET}",
        OTEL_BSP_SCHEDULE_DELAY="10",
    )
    export = start_trace_export(settings, variables)
    api = make_api(tracer=export.tracer)
    for number in range(1, 6):
        assert (await api.complete()).status_code == 200
        collector.wait_for(num_requests=number, deadline_s=PATIENCE_S)
    collector.status = 200
    await api.complete()
    collector.wait_for(num_spans=1, deadline_s=PATIENCE_S)
    await export.aclose()
    (failing,) = told(caplog, "traces cannot be exported")
    assert failing.because == "status 401"
    assert len(told(caplog, "traces are exported again")) == 1
    assert (export.num_ended, export.num_exported) == (6, 1)
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]
    assert SECRET not in caplog.text


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
async def test_collector_that_is_not_there_costs_spans_and_nothing_else(make_api, settings, environment, caplog, kind):
    caplog.set_level(logging.INFO)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # accepts by its backlog, and never answers
        port = listener.getsockname()[1]
        if kind == "refuses":
            listener.close()
        variables = environment(
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://user:{SECRET}@127.0.0.1:{port}",
            OTEL_EXPORTER_OTLP_TIMEOUT="0.2",
            OTEL_BSP_SCHEDULE_DELAY="1",
            OTEL_BSP_MAX_QUEUE_SIZE="16",
            OTEL_BSP_MAX_EXPORT_BATCH_SIZE="4",
        )
        export = start_trace_export(settings, variables)
        api = make_api(tracer=export.tracer)
        for _ in range(100):
            assert (await api.client.get("/unit/health")).status_code == 200
        await export.aclose(deadline_s=0.05)
    assert (export.num_ended, export.num_exported) == (100, 0)
    (left,) = told(caplog, "spans were not exported")
    assert left.num_spans == 100
    library = [record for record in caplog.records if record.name.startswith(("opentelemetry", "urllib3"))]
    assert not library
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "http/protobuf, not 'grpc'"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "http/protobuf, not 'http/json'"),
        ({"OTEL_BSP_MAX_QUEUE_SIZE": "1"}, "max_export_batch_size"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "collector:4318"}, "TRACES_ENDPOINT must be a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "//collector"}, "OTLP_ENDPOINT must be a URL"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1"}, "Invalid IPv6 URL"),
    ],
)
def test_value_that_cannot_be_used_ends_the_start(settings, environment, variables, sentence):
    variables = environment(**({ENDPOINT: "http://127.0.0.1:9"} | variables))
    with pytest.raises(StartError, match=sentence) as caught:
        start_trace_export(settings, variables)
    assert caught.value.exit_code is ExitCode.INVALID_ARGUMENTS


async def test_header_that_cannot_be_read_is_not_logged(settings, environment, caplog):
    caplog.set_level(logging.DEBUG)
    variables = environment(
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_HEADERS=f'authorization: "{SECRET}"'
    )
    await start_trace_export(settings, variables).aclose()
    assert SECRET not in caplog.text
