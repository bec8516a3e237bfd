"""Every Prometheus instrument of the runtime, on a registry that is passed in.

Labels are bounded: routes rather than paths, key ids rather than keys. Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dedicate_runtime.core.request import EngineStats, ModelInfo

_PREFIX = "dedicate"
_LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """The API's instruments; the engine's gauges are read when they are scraped."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        ProcessCollector(namespace=_PREFIX, registry=registry)
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Requests answered, by route, status and client",
            ["route", "status", "key_id"],
            registry=registry,
        )
        self._in_progress = Gauge(f"{_PREFIX}_requests_in_progress", "Requests being answered", registry=registry)
        self._durations = Histogram(
            f"{_PREFIX}_request_duration_seconds",
            "Time from a request's first byte to its answer's last",
            ["route"],
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self._first_tokens = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds",
            "Time from admission to the first token of a request",
            buckets=_LATENCY_BUCKETS,
            registry=registry,
        )
        self._inter_token = Histogram(
            f"{_PREFIX}_inter_token_latency_seconds",
            "Time between tokens of one choice, averaged over those that came together",
            buckets=_TOKEN_BUCKETS,
            registry=registry,
        )
        self._prompt_tokens = Counter(
            f"{_PREFIX}_prompt_tokens", "Prompt tokens of answered requests", ["key_id"], registry=registry
        )
        self._completion_tokens = Counter(
            f"{_PREFIX}_completion_tokens", "Tokens generated for answered requests", ["key_id"], registry=registry
        )
        self._model = Gauge(
            f"{_PREFIX}_model_info",
            "The loaded model; always 1",
            ["model", "dtype", "device", "attention_backend"],
            registry=registry,
        )
        self._loading = Gauge(
            f"{_PREFIX}_model_load_seconds", "Time from the start to the first token", registry=registry
        )

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
        """Counts one request whose answer has ended, however it ended."""
        self._in_progress.dec()
        self._requests.labels(route, str(status), key_id).inc()
        self._durations.labels(route).observe(duration_s)
        if num_prompt_tokens:
            self._prompt_tokens.labels(key_id).inc(num_prompt_tokens)
        if num_completion_tokens:
            self._completion_tokens.labels(key_id).inc(num_completion_tokens)

    def observe_first_token(self, seconds: float) -> None:
        self._first_tokens.observe(seconds)

    def observe_tokens(self, count: int, seconds: float) -> None:
        """Records `count` tokens of one choice that came `seconds` after those before; one observation for all."""
        self._inter_token.observe(seconds / count)

    def observe_model(self, name: str, info: ModelInfo, load_s: float) -> None:
        self._model.labels(name, info.dtype, info.device, info.attention_backend).set(1)
        self._loading.set(load_s)

    def watch_engine(self, read_stats: Callable[[], EngineStats | None]) -> None:
        """Exposes the engine's own numbers, as `read_stats` gives them at each scrape; None exposes none."""
        self.registry.register(_EngineCollector(read_stats))


class _EngineCollector(Collector):
    def __init__(self, read_stats: Callable[[], EngineStats | None]) -> None:
        self._read_stats = read_stats

    def collect(self) -> Iterable[Metric]:
        stats = self._read_stats()
        if stats is None:
            return
        gauges = {
            "sequences_running": ("Sequences in the engine's steps", stats.num_running),
            "sequences_waiting": ("Sequences waiting for a place in a step", stats.num_waiting),
            "kv_cache_blocks": ("Blocks of the KV cache", stats.num_blocks),
            "kv_cache_free_blocks": ("Blocks of the KV cache that are free", stats.num_free_blocks),
            "engine_last_step_seconds": ("Duration of the last step", stats.last_step_s),
        }
        counters = {
            "engine_steps": ("Steps that the engine has run", stats.num_steps),
            "engine_preemptions": ("Sequences put back for want of KV blocks", stats.num_preemptions),
            "engine_prompt_tokens": ("Prompt tokens computed, recomputation included", stats.num_prompt_tokens),
            "engine_generated_tokens": ("Tokens sampled", stats.num_generated_tokens),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", help_, value=value)
        for name, (help_, value) in counters.items():
            yield CounterMetricFamily(f"{_PREFIX}_{name}", help_, value=value)

    def describe(self) -> Iterable[Metric]:
        return ()
