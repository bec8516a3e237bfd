"""Every Prometheus instrument of the runtime, on a registry that is passed in.

Labels are bounded: routes rather than paths, key ids rather than keys. Times are in seconds. Names follow vLLM's where
it has one for the same thing, so that dashboards carry over with another prefix. The list for people: docs/api.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from dedicate_runtime.core.request import EngineStats, ModelInfo
from dedicate_runtime.engine.interface import EngineLoss, StepKind
from dedicate_runtime.errors import RefusalReason

_PREFIX = "dedicate"
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)
_LENGTH_BUCKETS = tuple(2**power for power in range(18))


class Metrics:
    """The API's instruments, and the engine's observer; the engine's gauges are read when they are scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(namespace=_PREFIX, registry=registry)
        self._add_request_instruments()
        self._add_file_instruments()
        self._add_engine_instruments()
        self._model = self._gauge(
            "model_info", "The loaded model; always 1", ["model", "dtype", "device", "attention_backend"]
        )
        self._loading = self._gauge("model_load_seconds", "Time from the engine's last start to its first token")

    def _add_request_instruments(self) -> None:
        self._requests = self._counter(
            "requests", "Requests answered, by route, status and client", ["route", "status", "key_id"]
        )
        self._in_progress = self._gauge("requests_in_progress", "Requests being answered")
        self._errors = self._counter("request_errors", "Requests refused or failed, streams too, by code", ["code"])
        self._disconnects = self._counter("client_disconnects", "Requests whose client left before their answer's end")
        self._finishes = self._counter(
            "request_success", "Choices that came to their end, by why they ended", ["finished_reason"]
        )
        self._streams = self._gauge("streams_open", "Event streams being sent")
        self._refused_connections = self._counter(
            "refused_connections", "Connections that were ended before a request could be read, by why", ["reason"]
        )
        self._durations = self._histogram(
            "request_duration_seconds",
            "Time from a request's first byte to its answer's last, by route",
            _LATENCY_BUCKETS,
            ["route"],
        )
        self._latencies = self._histogram(
            "e2e_request_latency_seconds",
            "Time from a request's first byte to its answer's last, of those that generated tokens",
            _LATENCY_BUCKETS,
        )
        self._first_tokens = self._histogram(
            "time_to_first_token_seconds", "Time from a request's first byte to its first token", _LATENCY_BUCKETS
        )
        self._inter_token = _QuickHistogram(
            f"{_PREFIX}_inter_token_latency_seconds",
            "Time between tokens of one choice, averaged over those that came together",
            _TOKEN_BUCKETS,
        )
        self.registry.register(self._inter_token)
        self._prompt_lengths = self._histogram(
            "request_prompt_tokens", "Prompt tokens of a request that generated tokens", _LENGTH_BUCKETS
        )
        self._generation_lengths = self._histogram(
            "request_generation_tokens", "Tokens that a request generated, all choices together", _LENGTH_BUCKETS
        )
        self._limited = self._counter(
            "rate_limited_requests", "Requests refused because of a limit of their client", ["key_id", "limit"]
        )
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answered requests", ["key_id"])
        self._completion_tokens = self._counter(
            "completion_tokens", "Tokens generated for answered requests", ["key_id"]
        )

    def _add_engine_instruments(self) -> None:
        self._queue_times = self._histogram(
            "request_queue_time_seconds", "Time from a sequence's submission to its first step", _LATENCY_BUCKETS
        )
        self._prefill_times = self._histogram(
            "request_prefill_time_seconds", "Time from a sequence's first step to its first token", _LATENCY_BUCKETS
        )
        self._decode_times = self._histogram(
            "request_decode_time_seconds", "Time from a sequence's first token to its end", _LATENCY_BUCKETS
        )
        steps = self._histogram(
            "step_seconds", "Duration of a step, by whether it computed prompts", _TOKEN_BUCKETS, ["kind"]
        )
        self._steps = {kind: steps.labels(kind.value) for kind in StepKind}
        self._restarts = self._counter("engine_restarts", "Engine processes that were lost, by how", ["cause"])
        self._refusals = self._counter(
            "requests_refused", "Requests that the queue had no room for, by the bound that said so", ["reason"]
        )
        for cause in EngineLoss:
            self._restarts.labels(cause.value)
        for reason in RefusalReason:
            self._refusals.labels(reason.value)

    def _add_file_instruments(self) -> None:
        self._num_keys = self._gauge("api_keys", "API keys that are accepted")
        self._reloads = self._gauge(
            "config_last_reload_successful", "Whether a mounted file is in use as it is now, by file", ["file"]
        )

    def _counter(self, name: str, help_: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(f"{_PREFIX}_{name}", help_, labels, registry=self.registry)

    def _gauge(self, name: str, help_: str, labels: Iterable[str] = ()) -> Gauge:
        return Gauge(f"{_PREFIX}_{name}", help_, labels, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: Iterable[float], labels: Iterable[str] = ()) -> Histogram:
        return Histogram(f"{_PREFIX}_{name}", help_, labels, buckets=tuple(buckets), registry=self.registry)

    def observe_start(self) -> None:
        self._in_progress.inc()

    def observe_end(
        self,
        *,
        route: str,
        status: int,
        key_id: str,
        duration_s: float,
        num_prompt_tokens: int,
        num_completion_tokens: int,
    ) -> None:
        """Counts one answered request; those that fail in the middle of a stream keep their status."""
        self._in_progress.dec()
        self._requests.labels(route, str(status), key_id).inc()
        self._durations.labels(route).observe(duration_s)
        if num_prompt_tokens:
            self._prompt_tokens.labels(key_id).inc(num_prompt_tokens)
        if num_completion_tokens:
            self._completion_tokens.labels(key_id).inc(num_completion_tokens)
            self._latencies.observe(duration_s)
            self._prompt_lengths.observe(num_prompt_tokens)
            self._generation_lengths.observe(num_completion_tokens)

    def observe_error(self, code: str) -> None:
        """Counts an error that a client was told; `code` is one of docs/api.md, or the type of one without."""
        self._errors.labels(code).inc()

    def observe_client_left(self) -> None:
        self._disconnects.inc()

    def observe_finishes(self, reasons: Iterable[str | None]) -> None:
        for reason in reasons:
            if reason is not None:
                self._finishes.labels(reason).inc()

    def observe_stream_start(self) -> None:
        self._streams.inc()

    def observe_stream_end(self) -> None:
        self._streams.dec()

    def observe_refused_connection(self, reason: str) -> None:
        self._refused_connections.labels(reason).inc()

    def observe_limited(self, key_id: str, limit: str) -> None:
        self._limited.labels(key_id, limit).inc()

    def observe_keys(self, count: int, *, is_current: bool) -> None:
        self._num_keys.set(count)
        self._reloads.labels("api_keys").set(is_current)

    def observe_limits(self, *, is_current: bool) -> None:
        self._reloads.labels("limits").set(is_current)

    def forget_client(self, key_id: str) -> None:
        """Drops the series of a client that is gone, so that they do not grow with every rotation of keys."""
        for counter in (self._requests, self._limited, self._prompt_tokens, self._completion_tokens):
            counter.remove_by_labels({"key_id": key_id})

    def observe_first_token(self, seconds: float) -> None:
        self._first_tokens.observe(seconds)

    def observe_tokens(self, count: int, seconds: float) -> None:
        """Records `count` tokens of one choice that came `seconds` after those before; one observation for all."""
        self._inter_token.observe(seconds / count)

    def observe_model(self, name: str, info: ModelInfo, load_s: float) -> None:
        self._model.labels(name, info.dtype, info.device, info.attention_backend).set(1)
        self._loading.set(load_s)

    def observe_step(self, kind: StepKind, seconds: float) -> None:
        self._steps[kind].observe(seconds)

    def observe_queue_time(self, seconds: float) -> None:
        self._queue_times.observe(seconds)

    def observe_prefill_time(self, seconds: float) -> None:
        self._prefill_times.observe(seconds)

    def observe_decode_time(self, seconds: float) -> None:
        self._decode_times.observe(seconds)

    def observe_loss(self, cause: EngineLoss) -> None:
        self._restarts.labels(cause.value).inc()

    def observe_refusal(self, reason: RefusalReason) -> None:
        self._refusals.labels(reason.value).inc()

    def watch_queue(self, read_expected_wait_s: Callable[[], float | None]) -> None:
        """Exposes how long the queue is, in time, as it is at each scrape; None exposes nothing."""
        self.registry.register(_QueueCollector(read_expected_wait_s))

    def watch_engine(self, read_stats: Callable[[], EngineStats | None]) -> None:
        """Exposes the engine's own numbers, as `read_stats` gives them at each scrape; None exposes none."""
        self.registry.register(_EngineCollector(read_stats))

    def watch_log(self, count_dropped: Callable[[], int]) -> None:
        """Exposes how many log records were lost, as `count_dropped` gives it at each scrape."""
        help_ = "Log records that were not written, because nobody read those before them"
        self.registry.register(_CounterCollector({"log_records_dropped": (help_, count_dropped)}))

    def watch_traces(self, count_ended: Callable[[], int], count_exported: Callable[[], int]) -> None:
        """Exposes how many sampled spans have ended and how many a collector took, as given at each scrape."""
        counters = {
            "trace_spans": ("Sampled spans that have ended", count_ended),
            "trace_spans_exported": ("Spans that the collector took", count_exported),
        }
        self.registry.register(_CounterCollector(counters))


class _CounterCollector(Collector):
    """Counters that are kept elsewhere."""

    def __init__(self, counters: Mapping[str, tuple[str, Callable[[], int]]]) -> None:
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        for name, (help_, count) in self._counters.items():
            yield CounterMetricFamily(f"{_PREFIX}_{name}", help_, value=count())

    def describe(self) -> Iterable[Metric]:
        return ()


class _QuickHistogram(Collector):
    """A histogram for what is observed with every token, at a fraction of the price of the library's, which locks.

    Belongs to the event loop, scrapes included.
    """

    def __init__(self, name: str, help_: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._help = help_
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterable[Metric]:
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        buckets = list(zip(names, map(float, accumulate(self._counts)), strict=True))
        yield HistogramMetricFamily(self._name, self._help, buckets=buckets, sum_value=self._sum)

    def describe(self) -> Iterable[Metric]:
        return (HistogramMetricFamily(self._name, self._help),)


class _EngineCollector(Collector):
    def __init__(self, read_stats: Callable[[], EngineStats | None]) -> None:
        self._read_stats = read_stats

    def collect(self) -> Iterable[Metric]:
        stats = self._read_stats()
        if stats is None:
            return
        gauges: dict[str, tuple[str, float]] = {
            "num_requests_running": ("Sequences in the engine's steps", stats.num_running),
            "num_requests_waiting": ("Sequences waiting for a place in a step", stats.num_waiting),
            "kv_cache_usage_ratio": ("Part of the KV cache that sequences hold", _usage(stats)),
            "kv_cache_blocks": ("Blocks of the KV cache", stats.num_blocks),
            "kv_cache_free_blocks": ("Blocks of the KV cache that no sequence holds", stats.num_free_blocks),
            "kv_cache_cached_blocks": (
                "Free blocks that hold a prefix which may be asked for",
                stats.num_cached_blocks,
            ),
        }
        counters = {
            "num_preemptions": ("Sequences put back for want of KV blocks", stats.num_preemptions),
            "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache", stats.num_prefix_query_tokens),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache", stats.num_prefix_hit_tokens),
            "engine_prompt_tokens": ("Tokens of prompts that were computed or found", stats.num_prompt_tokens),
            "engine_generation_tokens": ("Tokens sampled", stats.num_generated_tokens),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", help_, value=value)
        for name, (help_, count) in counters.items():
            yield CounterMetricFamily(f"{_PREFIX}_{name}", help_, value=count)

    def describe(self) -> Iterable[Metric]:
        return ()


class _QueueCollector(Collector):
    def __init__(self, read_expected_wait_s: Callable[[], float | None]) -> None:
        self._read_expected_wait_s = read_expected_wait_s

    def collect(self) -> Iterable[Metric]:
        wait_s = self._read_expected_wait_s()
        if wait_s is not None:
            help_ = "Time until the last of those that wait now is expected to have its first step"
            yield GaugeMetricFamily(f"{_PREFIX}_expected_queue_time_seconds", help_, value=wait_s)

    def describe(self) -> Iterable[Metric]:
        return ()


def _usage(stats: EngineStats) -> float:
    return 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0
