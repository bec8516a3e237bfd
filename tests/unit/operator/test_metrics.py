from __future__ import annotations

import socket

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dedicate_operator.errors import ClusterError
from dedicate_operator.health import MetricsServer
from dedicate_operator.metrics import (
    EndpointState,
    ErrorKind,
    Metrics,
    QueueState,
    Result,
    Snapshot,
    classify,
    name_request,
)


@pytest.mark.parametrize(
    ("method", "url", "named"),
    [
        ("get", "api/v1/namespaces/team/pods", ("list", "pods")),
        ("get", "/api/v1/pods?limit=500", ("list", "pods")),
        ("get", "api/v1/namespaces/team/services/chat", ("get", "services")),
        ("get", "apis/apps/v1/deployments", ("list", "deployments")),
        ("post", "api/v1/namespaces/team/secrets", ("create", "secrets")),
        ("put", "apis/coordination.k8s.io/v1/namespaces/team/leases/dedicate", ("update", "leases")),
        ("patch", "apis/apps/v1/namespaces/team/deployments/chat", ("patch", "deployments")),
        ("PATCH", "apis/a.b/v1/namespaces/team/things/chat/status", ("patch", "things/status")),
        ("delete", "apis/apps/v1/namespaces/team/deployments/chat", ("delete", "deployments")),
        # The namespaces themselves, and one of that name.
        ("get", "api/v1/namespaces/team", ("get", "namespaces")),
        ("get", "api/v1/namespaces/namespaces/pods/namespaces", ("get", "pods")),
    ],
)
def test_requests_have_the_names_that_rbac_uses(method, url, named):
    assert name_request(method, url, is_watch=False) == named


def test_a_watch_is_no_list():
    assert name_request("get", "api/v1/pods", is_watch=True) == ("watch", "pods")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (TimeoutError(), ErrorKind.DEADLINE),
        (ValueError("ours"), ErrorKind.CRASH),
        (ClusterError("no answer"), ErrorKind.UNREACHABLE),
        (ClusterError("x", code=401), ErrorKind.FORBIDDEN),
        (ClusterError("x", code=403), ErrorKind.FORBIDDEN),
        (ClusterError("x", code=404), ErrorKind.NOT_FOUND),
        (ClusterError("x", code=409), ErrorKind.CONFLICT),
        (ClusterError("x", code=422), ErrorKind.REFUSED),
        (ClusterError("x", code=429), ErrorKind.THROTTLED),
        (ClusterError("x", code=503), ErrorKind.SERVER),
    ],
)
def test_errors_by_kind(error, kind):
    assert classify(error) is kind


@pytest.fixture
def metrics():
    made = Metrics(CollectorRegistry(), version="1.2.3")
    endpoints = [
        EndpointState("team", "a", is_ready=True, reason="Serving"),
        EndpointState("team", "b", is_ready=False, reason="ImagePull"),
        EndpointState("other", "b", is_ready=False, reason="ImagePull"),
    ]
    restarts = {("pods", "gone"): 1, ("pods", "ended"): 4}
    made.watch(lambda: Snapshot(True, QueueState(3, 2, 1, 12.5, 7), endpoints, restarts))
    return made


def test_what_has_not_happened_is_zero(metrics):
    for result in Result:
        assert metrics.registry.get_sample_value("dedicate_operator_reconciles_total", {"result": result}) == 0
    for kind in ErrorKind:
        assert metrics.registry.get_sample_value("dedicate_operator_reconcile_errors_total", {"kind": kind}) == 0


def test_names_follow_the_rules(metrics):
    """Base units, `_total` for counters and for nothing else, one prefix, a sentence for each."""
    for family in metrics.registry.collect():
        assert family.name.startswith("dedicate_operator_")
        assert family.documentation
        assert not family.name.endswith(("_count", "_sum", "_bucket", "_ms", "_milliseconds"))
        if family.type == "histogram":
            assert family.name.endswith("_seconds")


async def test_served_as_text(metrics):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    metrics.observe_reconcile(Result.SUCCEEDED, 0.02)
    server = MetricsServer(port, metrics.registry)
    await server.start()
    try:
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port}/metrics") as response,
        ):
            assert response.status == 200
            assert response.headers["Content-Type"].startswith("text/plain; version=")
            text = await response.text()
    finally:
        await server.stop()
    samples = {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    told = {
        ("build_info", ("1.2.3",)): 1,
        ("leader", ()): 1,
        ("reconciles_total", ("succeeded",)): 1,
        ("reconcile_duration_seconds_sum", ()): 0.02,
        ("queue_depth", ()): 3,
        ("queue_delayed", ()): 2,
        ("queue_active", ()): 1,
        ("queue_oldest_seconds", ()): 12.5,
        ("queue_retries_total", ()): 7,
        ("watch_restarts_total", ("ended", "pods")): 4,
        ("endpoints", ("ImagePull",)): 2,
        ("endpoint_ready", ("a", "team", "Serving")): 1,
        ("endpoint_ready", ("b", "other", "ImagePull")): 0,
    }
    assert {key: samples[f"dedicate_operator_{key[0]}", key[1]] for key in told} == told
