"""Promise 10: storms between the operator and its API server converge within 10 s of their end.

A proxy of ours stands between the two and spoils what passes. While a storm lasts, people go on: they make, change and
delete endpoints, and break children; when it ends, all of that must come true. docs/faults.md lists every fault.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from dev.faults import storms
from dev.faults.proxy import FaultProxy
from tests.cluster.harness import CORE, DEPLOYMENTS, SMALLEST, Namespace, Operator, eventually

# What the promise allows, and the storms' length in a quick run: longer than a renewal of the Lease may fail.
CONVERGE_S = 10.0
STORM_S = 4.0

# The storms that answer, delay or spoil requests for as long as they last.
STORMS: dict[str, Callable[[], storms.Calm]] = {
    "latency": lambda: storms.Latency(0.5),
    "conflict": storms.conflicts,
    "gone": storms.gone,
    "gone-in-stream": storms.gone_in_stream,
    "error-in-stream": storms.broken_in_stream,
    "too-many-requests": lambda: storms.overload(retry_after_s=1),
    "server-error": lambda: storms.server_errors(500),
    "unavailable": lambda: storms.server_errors(503),
    "html-502": lambda: storms.html(502),
    "html-200": lambda: storms.html(200),
    "truncated": storms.Truncation,
}


@pytest.fixture(scope="module")
def proxy(operator_kubeconfig, tmp_path_factory) -> Iterator[FaultProxy]:
    made = FaultProxy(operator_kubeconfig, tmp_path_factory.mktemp("proxy"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def behind(proxy, operator_process, tmp_path_factory) -> Iterator[Operator]:
    """An operator that reaches the API server through the proxy only."""
    if operator_process.is_running():
        operator_process.stop()
    process = Operator(proxy.kubeconfig, tmp_path_factory.mktemp("behind") / "log")
    process.start()
    yield process
    if process.is_running():
        process.stop()


@pytest.fixture
def stormy(proxy, behind) -> Iterator[FaultProxy]:
    """The proxy; calm again afterwards, whatever the test did."""
    if not behind.is_running():
        behind.start()
    yield proxy
    proxy.end()
    proxy.admit()
    behind.await_role("leading", timeout_s=30)


class Life:
    """What people do meanwhile, and how all of it must come out."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        namespace.apply("elder")
        for name in ("robbed", "edited", "changed"):
            namespace.apply(name)
        for name in ("robbed", "edited", "changed", "elder"):
            namespace.await_children(name)
        namespace.await_next_second("elder")
        namespace.apply("heir", {**SMALLEST, "dedicate": "elder"})
        namespace.await_condition("heir", "Accepted", "False", "PathConflict")

    def rob(self) -> None:
        self.namespace.api.delete(self.namespace.path(DEPLOYMENTS, "deployments", "robbed"))

    def go_on(self) -> None:
        namespace = self.namespace
        self.rob()
        namespace.api.merge(namespace.path(CORE, "services", "edited"), {"spec": {"selector": {"edit": "yes"}}})
        namespace.merge("changed", {"startup": {"timeoutSeconds": 100}})
        namespace.delete("elder")
        namespace.apply("newcomer")

    def is_right(self) -> bool:
        namespace = self.namespace
        assert namespace.deployment("robbed"), "a deleted child is missing"
        assert "edit" not in namespace.service("edited")["spec"]["selector"], "an edit stands"
        changed = namespace.deployment("changed")
        assert changed["spec"]["progressDeadlineSeconds"] == 700, "a change is missing"
        is_passed_on = namespace.conditions("heir").get("Accepted") == ("True", "Valid")
        assert is_passed_on, namespace.message("heir", "Accepted")
        assert namespace.ingress("heir"), "the heir has no route"
        newcomer = [namespace.deployment("newcomer"), namespace.service("newcomer"), namespace.ingress("newcomer")]
        assert all(newcomer), "a new endpoint lacks children"
        assert namespace.conditions("newcomer"), "a new endpoint lacks its status"
        return True


@pytest.fixture
def life(namespace, stormy) -> Life:
    return Life(namespace)


def wait(seconds: float) -> None:
    """Let a storm last."""
    deadline = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= deadline, seconds + 1)


def converge(name: str, life: Life, operator: Operator, convergence: Callable[[str, float], None]) -> None:
    began = time.monotonic()
    eventually(life.is_right, CONVERGE_S)
    convergence(name, time.monotonic() - began)
    assert operator.probe("/healthz") == 200
    assert [line for line in operator.records() if line["message"] == "reconcile crashed"] == []


@pytest.mark.parametrize("name", STORMS)
def test_storm(name, stormy, behind, life, convergence):
    storm = STORMS[name]()
    stormy.start(storm)
    stormy.cut()
    life.go_on()
    wait(STORM_S)
    assert storm.num_met > 0
    stormy.end()
    converge(name, life, behind, convergence)


@pytest.mark.long
@pytest.mark.parametrize("name", ["server-error", "unavailable", "refused-connections"])
def test_storm_of_a_minute(name, stormy, behind, life, convergence):
    """Longer than the Lease lasts: nobody leads at its end."""
    if name in STORMS:
        stormy.start(STORMS[name]())
        stormy.cut()
    else:
        stormy.refuse()
    life.go_on()
    wait(60)
    assert behind.probe("/healthz") == 200
    assert behind.probe("/readyz") == 503
    stormy.end()
    stormy.admit()
    converge(f"{name}, a minute", life, behind, convergence)


def test_api_server_that_restarts(stormy, behind, life, convergence, api_cluster):
    life.go_on()
    api_cluster.kill("kube-apiserver")
    eventually(life.namespace.api.is_up, timeout_s=60)
    # All that went on before may have been answered before, too.
    life.rob()
    converge("restart", life, behind, convergence)


def test_cut_watches(stormy, behind, life, convergence):
    life.go_on()
    for _ in range(5):
        # As often as some have been taken up again.
        eventually(stormy.cut)
    converge("cut-watches", life, behind, convergence)


def test_silent_watches(stormy, behind, life, convergence):
    storm = storms.SilentWatches()
    stormy.start(storm)
    life.go_on()
    eventually(lambda: storm.num_met >= 3)
    stormy.end()
    stormy.cut()
    converge("silent-watches", life, behind, convergence)


def test_refused_connections(stormy, behind, life, convergence):
    stormy.refuse()
    life.go_on()
    num_requests = stormy.num_requests
    wait(STORM_S)
    assert stormy.num_requests == num_requests
    stormy.admit()
    converge("refused-connections", life, behind, convergence)
