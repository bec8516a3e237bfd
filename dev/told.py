"""What tests tell beside their outcome: figures, versions. Gathered from all processes of a run for its summary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Tell = Callable[[str, str, Any], None]
_TOLD = pytest.StashKey[dict[str, dict[str, list[Any]]]]()
_FIELD = "dedicate_told"


def pytest_configure(config: pytest.Config) -> None:
    """Begin with nothing."""
    config.stash[_TOLD] = {}


@pytest.fixture(scope="session")
def tell(request: pytest.FixtureRequest) -> Tell:
    """Keep a value for the summary: `tell("rollouts", "requests", 10_000)`; it is made of what JSON knows."""

    def keep(topic: str, name: str, value: Any) -> None:
        _keep(request.config, topic, name, [value])

    return keep


def told(config: pytest.Config, topic: str) -> dict[str, list[Any]]:
    """Return the values of a topic by name, in the order they came."""
    return config.stash[_TOLD].get(topic, {})


def _keep(config: pytest.Config, topic: str, name: str, values: list[Any]) -> None:
    config.stash[_TOLD].setdefault(topic, {}).setdefault(name, []).extend(values)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over what one of several processes gathered."""
    # pytest-xdist gives its workers this dictionary, and its controller finds it at the node's end.
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_FIELD] = session.config.stash[_TOLD]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process gathered; one that crashed gives nothing."""
    for topic, names in getattr(node, "workeroutput", {}).get(_FIELD, {}).items():
        for name, values in names.items():
            _keep(node.config, topic, name, values)
