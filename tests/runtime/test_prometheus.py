"""The runtime's metrics, taken up by a real Prometheus as the chart's PodMonitor has it done."""

from __future__ import annotations

import httpx
import pytest

from dev.monitoring import iterate_panels, list_runtime_metrics
from dev.prometheus import run_prometheus, run_promtool

# Exported where traces are, or after something that does not happen here.
_ABSENT = {
    "dedicate_trace_spans_total",
    "dedicate_trace_spans_exported_total",
    "dedicate_rate_limited_requests_total",
    "dedicate_request_errors_total",
    "dedicate_refused_connections_total",
    "dedicate_expected_queue_time_seconds",
}
# As the PodMonitor labels what it scrapes.
_LABELS = {"namespace": "team", "pod": "chat-1", "dedicate_endpoint": "chat"}


@pytest.fixture
def prometheus(runtime):
    runtime.complete("Once upon a time", max_tokens=4)
    with run_prometheus({f"127.0.0.1:{runtime.management_port}": _LABELS}) as running:
        yield running


def test_metrics_have_no_fault(runtime):
    runtime.complete("Once upon a time", max_tokens=4)
    text = httpx.get(f"{runtime.management_url}/metrics", timeout=10).text
    assert run_promtool(["check", "metrics"], stdin=text) == ""


def test_prometheus_has_every_metric(runtime, prometheus):
    def find_missing():
        return [
            name
            for metric in list_runtime_metrics()
            for name, _ in metric.series()
            if name not in _ABSENT and not prometheus.query(name)
        ]

    runtime.wait_until(lambda: not find_missing(), deadline_s=30, what=f"every metric; missing: {find_missing()}")
    (target,) = prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")
    (series,) = prometheus.query("dedicate_model_info")
    assert _LABELS.items() <= series["metric"].items()


def test_every_panel_of_the_dashboard_shows_something(runtime, prometheus):
    # What did not happen here, or needs a limit that is not set.
    quiet = {"Errors", "Refused by limits of keys", "Expected wait"}

    def find_empty():
        return [
            (title, expression)
            for title, expressions in iterate_panels("endpoints", {"namespace": "team", "endpoint": "chat"})
            if title not in quiet
            for expression in expressions
            if not prometheus.query(expression)
        ]

    runtime.wait_until(lambda: not find_empty(), deadline_s=30, what=f"every panel; empty: {find_empty()}")
