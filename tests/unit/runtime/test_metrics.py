"""The instruments: what each counts, and that docs/api.md lists them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from dedicate_runtime.core.request import EngineStats
from dedicate_runtime.engine.interface import EngineLoss, StepKind
from dedicate_runtime.errors import RefusalReason
from dedicate_runtime.metrics import _TOKEN_BUCKETS, Metrics

API = Path(__file__).parents[3] / "docs" / "api.md"
STATS = EngineStats(
    num_running=3,
    num_waiting=2,
    num_free_blocks=6,
    num_blocks=8,
    num_preemptions=5,
    num_prompt_tokens=100,
    num_generated_tokens=50,
    num_steps=8,
    last_step_s=0.5,
    num_cached_blocks=4,
    num_prefix_query_tokens=100,
    num_prefix_hit_tokens=64,
)


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"dedicate_{name}", labels)


def test_engines_own_numbers_are_read_when_asked_for(metrics):
    present = [STATS, None]
    metrics.watch_engine(lambda: present[0])
    expected = {
        "num_requests_running": 3,
        "num_requests_waiting": 2,
        "kv_cache_usage_ratio": 0.25,
        "kv_cache_blocks": 8,
        "kv_cache_free_blocks": 6,
        "kv_cache_cached_blocks": 4,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 64,
        "num_preemptions_total": 5,
        "engine_prompt_tokens_total": 100,
        "engine_generation_tokens_total": 50,
    }
    assert {name: value(metrics, name) for name in expected} == expected
    present.pop(0)
    assert {value(metrics, name) for name in expected} == {None}


def test_observations_go_where_they_belong(metrics):
    metrics.observe_step(StepKind.DECODE, 0.02)
    metrics.observe_step(StepKind.PREFILL, 0.2)
    metrics.observe_queue_time(1.0)
    metrics.observe_prefill_time(2.0)
    metrics.observe_decode_time(3.0)
    metrics.observe_loss(EngineLoss.HUNG)
    metrics.observe_refusal(RefusalReason.QUEUE_TIME)
    assert value(metrics, "step_seconds_sum", kind="decode") == 0.02
    assert value(metrics, "step_seconds_sum", kind="prefill") == 0.2
    assert value(metrics, "request_queue_time_seconds_sum") == 1.0
    assert value(metrics, "request_prefill_time_seconds_sum") == 2.0
    assert value(metrics, "request_decode_time_seconds_sum") == 3.0
    assert value(metrics, "engine_restarts_total", cause="hung") == 1
    assert value(metrics, "engine_restarts_total", cause="died") == 0
    refused = {reason: value(metrics, "requests_refused_total", reason=reason.value) for reason in RefusalReason}
    assert refused == {reason: float(reason is RefusalReason.QUEUE_TIME) for reason in RefusalReason}


def test_length_of_the_queue_is_told_when_it_is_known(metrics):
    expected = [None, 2.5]
    metrics.watch_queue(lambda: expected[0])
    assert value(metrics, "expected_queue_time_seconds") is None
    expected.pop(0)
    assert value(metrics, "expected_queue_time_seconds") == 2.5


def test_what_others_count_is_read_when_asked_for(metrics):
    counts = {"dropped": 0, "ended": 0, "exported": 0}
    metrics.watch_log(lambda: counts["dropped"])
    metrics.watch_traces(lambda: counts["ended"], lambda: counts["exported"])
    counts.update(dropped=3, ended=9, exported=7)
    assert value(metrics, "log_records_dropped_total") == 3
    assert value(metrics, "trace_spans_total") == 9
    assert value(metrics, "trace_spans_exported_total") == 7


def test_errors_and_ends_are_counted_by_what_they_were(metrics):
    metrics.observe_error("queue_full")
    metrics.observe_finishes(["stop", None, "length", "stop"])
    metrics.observe_client_left()
    metrics.observe_stream_start()
    assert value(metrics, "request_errors_total", code="queue_full") == 1
    assert value(metrics, "request_success_total", finished_reason="stop") == 2
    assert value(metrics, "request_success_total", finished_reason="length") == 1
    assert value(metrics, "client_disconnects_total") == 1
    assert value(metrics, "streams_open") == 1
    metrics.observe_stream_end()
    assert value(metrics, "streams_open") == 0


def test_request_without_tokens_has_no_length_and_no_latency(metrics):
    for num_completion_tokens in (0, 7):
        metrics.observe_start()
        metrics.observe_end(
            route="/v1/completions",
            status=200,
            key_id="",
            duration_s=1.5,
            num_prompt_tokens=9,
            num_completion_tokens=num_completion_tokens,
        )
    assert value(metrics, "request_duration_seconds_count", route="/v1/completions") == 2
    assert value(metrics, "e2e_request_latency_seconds_count") == 1
    assert value(metrics, "request_prompt_tokens_sum") == 9
    assert value(metrics, "request_generation_tokens_sum") == 7


def test_all_are_listed_in_the_documents(metrics):
    metrics.watch_engine(lambda: STATS)
    metrics.watch_queue(lambda: 0.0)
    metrics.watch_log(lambda: 0)
    metrics.watch_traces(lambda: 0, lambda: 0)
    told = API.read_text().split("## Metrics")[1]
    listed = {name.removesuffix("_total") for name in re.findall(r"`(dedicate_[a-z0-9_]+)`", told)}
    listed |= {f"dedicate_kv_cache{suffix}" for suffix in re.findall(r"`(_[a-z]+_blocks)`", told)}
    offered = {metric.name for metric in metrics.registry.collect() if not metric.name.startswith("dedicate_process_")}
    assert offered == listed


def test_inter_token_latency_counts_as_the_librarys_histogram_does(metrics):
    """It is ours for speed alone: a scrape shows the same lines, for values on, between and beyond the bounds."""
    name, theirs = "dedicate_inter_token_latency_seconds", CollectorRegistry()
    histogram = Histogram(name, "Time", buckets=_TOKEN_BUCKETS, registry=theirs)
    for seconds in (0.0, 0.001, 0.0011, 0.03, 4.9, 5, 70):
        histogram.observe(seconds)
        metrics.observe_tokens(2, 2 * seconds)

    def samples(registry):
        text = generate_latest(registry).decode()
        return [
            line for line in text.splitlines() if line.startswith((f"{name}_bucket", f"{name}_sum", f"{name}_count"))
        ]

    assert samples(metrics.registry) == samples(theirs)
    assert len(samples(theirs)) == len(_TOKEN_BUCKETS) + 3
