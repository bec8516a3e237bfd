"""Keeps how long after a fault all was right again: in the summary and, if asked, in a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.told import Tell, told

_TOPIC = "convergence"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Take the file's name."""
    parser.addoption("--convergence", type=Path, help="write the seconds to converge after each fault to this file")


@pytest.fixture(scope="session")
def convergence(tell: Tell) -> Callable[[str, float], None]:
    """Record seconds from the end of a fault until all was right: `convergence("latency", 1.2)`."""

    def record(fault: str, after_s: float) -> None:
        tell(_TOPIC, fault, round(after_s, 2))

    return record


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print one line a fault."""
    seconds = told(config, _TOPIC)
    if not seconds:
        return
    terminalreporter.section("seconds from a fault's end until all was right")
    for fault, values in seconds.items():
        terminalreporter.line(f"{fault:28} {', '.join(f'{value:.2f}' for value in values)}")
    path: Path | None = config.getoption("--convergence")
    if path is not None:
        path.write_text(json.dumps(seconds, indent=2) + "\n")
