"""What all tiers share: clusters and live runtimes as fixtures, and a summary that says what each tier ran against."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes says how busy the machine is, and nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

pytest_plugins = ["dev.cluster.pytest_plugin", "dev.faults.pytest_plugin", "dev.live_runtime"]

_TIERS = {
    "unit": "pure modules, no cluster",
    "contract": "the operator's manifests against the runtime's parser",
    "runtime": "a live runtime with real weights",
    "proxies": "nginx, Envoy and Traefik as processes, in front of a stream",
    "clients": "client libraries, pinned, against a live runtime",
    "cluster": "the operator as a process, against a real API server",
    "e2e": "a real node: kubelet, containerd, Traefik, Helm, our images",
    "gpu": "a CUDA device",
}
_DETAILS = pytest.StashKey[dict[str, str]]()


def pytest_configure(config):
    config.stash[_DETAILS] = {}


def pytest_collection_modifyitems(items):
    """Run the tiers in the order above: what is quick first, and no cluster idles beside the tests of another tier."""
    order = list(_TIERS)
    items.sort(key=lambda item: order.index(tier) if (tier := _tier_of(item.nodeid)) else len(order))


def _tier_of(nodeid):
    parts = nodeid.split("/")
    return parts[1] if parts[0] == "tests" and parts[1] in _TIERS else None


@pytest.fixture(scope="session")
def ran_against(request):
    """Record, for the summary, what a tier really ran against: `ran_against("e2e", "Kubernetes v1.34.2")`."""

    def record(tier, what):
        request.config.stash[_DETAILS][tier] = what

    return record


def pytest_terminal_summary(terminalreporter, config):
    """Print one line a tier: counts by outcome, and what it ran against."""
    outcomes = {tier: Counter() for tier in _TIERS}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if tier := _tier_of(report.nodeid):
                outcomes[tier][outcome] += 1
    terminalreporter.section("tiers")
    for tier, counts in outcomes.items():
        if counts:
            numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
            against = config.stash[_DETAILS].get(tier, _TIERS[tier])
            terminalreporter.line(f"{tier:9} {numbers:32} {against}")
