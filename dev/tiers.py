"""The tiers of tests/: their order, how they are spread over processes, and a line each in the summary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from dev.told import Tell, told

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
# Tiers that one process of several runs whole: each has servers of its own, which start once, or models in memory. The
# longest come first, and the files of all other tiers fill up beside them.
_WHOLE = ("e2e", "runtime", "cluster", "clients", "proxies")


class _ByTier(LoadScopeScheduling):  # type: ignore[misc]  # it has no types
    """Gives a process what belongs together: a whole tier of those above, or a file of the others."""

    def _split_scope(self, nodeid: str) -> str:
        tier = _tier_of(nodeid)
        return tier if tier in _WHOLE else nodeid.partition("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling | None:
    """Spread the tests over processes as above where pytest-xdist is told `--dist=loadscope`."""
    # Not by its marks of groups: with pytest 9.2 it ignores them, https://github.com/pytest-dev/pytest-xdist/issues/1386.
    return _ByTier(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the tiers: what is quick first or, in one process of several, what is long."""
    is_spread = hasattr(config, "workerinput")
    order = [*_WHOLE, *(tier for tier in _TIERS if tier not in _WHOLE)] if is_spread else list(_TIERS)
    items.sort(key=lambda item: order.index(tier) if (tier := _tier_of(item.nodeid)) else len(order))


def _tier_of(nodeid: str) -> str | None:
    parts = nodeid.split("/")
    return parts[1] if parts[0] == "tests" and parts[1] in _TIERS else None


@pytest.fixture(scope="session")
def ran_against(tell: Tell) -> Callable[[str, str], None]:
    """Record, for the summary, what a tier really ran against: `ran_against("e2e", "Kubernetes v1.34.2")`."""

    def record(tier: str, what: str) -> None:
        tell("tiers", tier, what)

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print one line a tier: counts by outcome, and what it ran against; and one a figure."""
    outcomes: dict[str, Counter[str]] = {tier: Counter() for tier in _TIERS}
    for outcome in ("passed", "failed", "skipped", "error"):
        for report in terminalreporter.stats.get(outcome, []):
            if tier := _tier_of(report.nodeid):
                outcomes[tier][outcome] += 1
    terminalreporter.section("tiers")
    for tier, counts in outcomes.items():
        if counts:
            numbers = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
            against = told(config, "tiers").get(tier, [_TIERS[tier]])[0]
            terminalreporter.line(f"{tier:9} {numbers:32} {against}")
    for name, values in told(config, "figures").items():
        for value in values:
            terminalreporter.line(f"{name}: {value}")
