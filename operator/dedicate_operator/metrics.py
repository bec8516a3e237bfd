"""Every Prometheus instrument of the operator, on a registry that is passed in; docs/observability.md has the list.

What has its own home (the queue, the store, the watches, the lead) is read from there at each scrape. Labels are
bounded by the code, but for those that name an endpoint: there is one such series for each endpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dedicate_operator.errors import ClusterError

_PREFIX = "dedicate_operator"
# A pass without a request takes under a millisecond; one is given up after 60 s.
_RECONCILE_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# A request has 15 s at most.
_REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15)
_NO_ANSWER = "none"
# In the place of a reason, of an endpoint without a status.
UNREPORTED = "Unreported"
# The parts of an address before the resource, with and without a namespace: Kubernetes API concepts, "Resource URIs".
_ROOTS = {"api": 2, "apis": 3}


class Result(StrEnum):
    """How a pass over an endpoint ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CRASHED = "crashed"
    ABANDONED = "abandoned"
    OVERTAKEN = "overtaken"


class ErrorKind(StrEnum):
    """What was wrong, by who can help."""

    CONFLICT = "conflict"
    CRASH = "crash"
    DEADLINE = "deadline"
    FORBIDDEN = "forbidden"
    NOT_FOUND = "not_found"
    REFUSED = "refused"
    SERVER = "server"
    THROTTLED = "throttled"
    UNREACHABLE = "unreachable"


_KINDS_BY_CODE = {
    401: ErrorKind.FORBIDDEN,
    403: ErrorKind.FORBIDDEN,
    404: ErrorKind.NOT_FOUND,
    409: ErrorKind.CONFLICT,
    429: ErrorKind.THROTTLED,
}


def classify(error: Exception) -> ErrorKind:
    """Return what kind of failure an exception of a pass is."""
    if isinstance(error, TimeoutError):
        return ErrorKind.DEADLINE
    if not isinstance(error, ClusterError):
        return ErrorKind.CRASH
    if error.code is None:
        return ErrorKind.UNREACHABLE
    return _KINDS_BY_CODE.get(error.code, ErrorKind.SERVER if error.code >= 500 else ErrorKind.REFUSED)


class EndpointState(NamedTuple):
    """An endpoint's Ready condition."""

    namespace: str
    name: str
    is_ready: bool
    reason: str


@dataclass(frozen=True, slots=True)
class QueueState:
    """Keys by what they wait for; `oldest_s` is for how long one has waited for a worker."""

    num_ready: int
    num_delayed: int
    num_active: int
    oldest_s: float
    num_retries: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is read at a scrape; watch restarts by resource and reason."""

    is_leading: bool
    queue: QueueState
    endpoints: Iterable[EndpointState]
    watch_restarts: Mapping[tuple[str, str], int]


@dataclass(slots=True)
class Measurement:
    """One request under way; whoever sends it notes the answer's code."""

    code: int | None = None


class Metrics:
    """The instruments that are told; `watch` adds those that are read."""

    def __init__(self, registry: CollectorRegistry, *, version: str) -> None:
        self.registry = registry
        ProcessCollector(namespace=_PREFIX, registry=registry)
        build = Gauge(f"{_PREFIX}_build_info", "The operator's version; always 1", ["version"], registry=registry)
        build.labels(version).set(1)
        self._reconciles = Counter(
            f"{_PREFIX}_reconciles", "Passes over an endpoint, by how they ended", ["result"], registry=registry
        )
        self._errors = Counter(
            f"{_PREFIX}_reconcile_errors",
            "Passes that failed or crashed, by what was wrong",
            ["kind"],
            registry=registry,
        )
        self._durations = Histogram(
            f"{_PREFIX}_reconcile_duration_seconds",
            "Duration of a pass over an endpoint",
            buckets=_RECONCILE_BUCKETS,
            registry=registry,
        )
        self._requests = Counter(
            f"{_PREFIX}_api_requests",
            f"Requests to the API server; the code is {_NO_ANSWER} where no answer came",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self._request_durations = Histogram(
            f"{_PREFIX}_api_request_duration_seconds",
            "Time until the API server's answer was read; of a watch, until its first line",
            ["verb", "resource"],
            buckets=_REQUEST_BUCKETS,
            registry=registry,
        )
        # What has not happened yet is 0, or the first time could not be told from the start.
        for result in Result:
            self._reconciles.labels(result)
        for kind in ErrorKind:
            self._errors.labels(kind)

    def observe_reconcile(self, result: Result, seconds: float) -> None:
        self._reconciles.labels(result).inc()
        self._durations.observe(seconds)

    def observe_error(self, error: Exception) -> None:
        self._errors.labels(classify(error)).inc()

    @contextmanager
    def measure_request(self, method: str, url: str, *, is_watch: bool) -> Iterator[Measurement]:
        """Count one request and the time it took, however it ends."""
        verb, resource = name_request(method, url, is_watch=is_watch)
        measurement, started = Measurement(), time.monotonic()
        try:
            yield measurement
        finally:
            code = _NO_ANSWER if measurement.code is None else str(measurement.code)
            self._requests.labels(verb, resource, code).inc()
            self._request_durations.labels(verb, resource).observe(time.monotonic() - started)

    def watch(self, read: Callable[[], Snapshot]) -> None:
        """Expose what `read` gives at each scrape."""
        self.registry.register(_SnapshotCollector(read))


def name_request(method: str, url: str, *, is_watch: bool) -> tuple[str, str]:
    """Return verb and resource of a request as RBAC and the API server's own metrics name them.

    Args:
        method: the HTTP method.
        url: the address below the API server's, as in `apis/apps/v1/namespaces/team/deployments/chat`.
        is_watch: whether changes are asked for.
    """
    root, *parts = url.partition("?")[0].strip("/").split("/")
    rest = parts[_ROOTS[root] - 1 :]
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, *names = rest
    verbs = {"get": "get" if names else "list", "post": "create", "put": "update"}
    verb = "watch" if is_watch else verbs.get(method.lower(), method.lower())
    return verb, "/".join([resource, *names[1:]])


class _SnapshotCollector(Collector):
    def __init__(self, read: Callable[[], Snapshot]) -> None:
        self._read = read

    def collect(self) -> Iterable[Metric]:
        snapshot = self._read()
        queue = snapshot.queue
        gauges = {
            "leader": ("Whether this process leads", float(snapshot.is_leading)),
            "queue_depth": ("Endpoints that wait for a worker; 0 while standing by", queue.num_ready),
            "queue_delayed": ("Endpoints that are due later, for a retry or another look", queue.num_delayed),
            "queue_active": ("Endpoints that are worked on", queue.num_active),
            "queue_oldest_seconds": (
                "For how long an endpoint has waited for a worker; 0 while standing by",
                queue.oldest_s,
            ),
        }
        for name, (help_, value) in gauges.items():
            yield GaugeMetricFamily(f"{_PREFIX}_{name}", help_, value=value)
        yield CounterMetricFamily(
            f"{_PREFIX}_queue_retries", "Passes that are made again because one failed", value=queue.num_retries
        )
        restarts = CounterMetricFamily(
            f"{_PREFIX}_watch_restarts",
            "Watches that ended and were begun again: ended by the server in its time, gone (too much was "
            "missed: listed again), failed",
            labels=["resource", "reason"],
        )
        for labels, count in sorted(snapshot.watch_restarts.items()):
            restarts.add_metric(labels, count)
        yield restarts
        yield from _collect_endpoints(snapshot.endpoints)

    def describe(self) -> Iterable[Metric]:
        return ()


def _collect_endpoints(endpoints: Iterable[EndpointState]) -> Iterable[Metric]:
    ready = GaugeMetricFamily(
        f"{_PREFIX}_endpoint_ready",
        "Whether an endpoint is Ready, with the condition's reason; one series for each endpoint, from every operator",
        # `namespace` and `endpoint` are labels that the Prometheus operator gives to what it scrapes.
        labels=["endpoint_namespace", "endpoint_name", "reason"],
    )
    counts: dict[str, int] = {}
    for endpoint in endpoints:
        ready.add_metric([endpoint.namespace, endpoint.name, endpoint.reason], float(endpoint.is_ready))
        counts[endpoint.reason] = counts.get(endpoint.reason, 0) + 1
    by_reason = GaugeMetricFamily(f"{_PREFIX}_endpoints", "Endpoints by the reason of Ready", labels=["reason"])
    for reason, count in sorted(counts.items()):
        by_reason.add_metric([reason], count)
    yield by_reason
    yield ready
