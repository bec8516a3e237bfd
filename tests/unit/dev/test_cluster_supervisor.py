"""The supervisor against real processes. It collects every child of its process, so it gets one of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dev.cluster.component import Component, check_order
from dev.cluster.errors import ClusterError
from dev.cluster.linux import find_processes
from dev.cluster.status import ClusterStatus, Phase, State
from dev.paths import REPOSITORY

DEADLINE_S = 30.0

DRIVER = """
import sys
from pathlib import Path
from dev.cluster.component import CommandProbe, Component
from dev.cluster.status import ClusterStatus
from dev.cluster.supervisor import Supervisor

folder = Path(sys.argv[1])
def sh(script): return ("sh", "-c", script)
def exists(name): return CommandProbe(("test", "-e", str(folder / name)))
components = [{components}]
supervisor = Supervisor(components, folder, ClusterStatus(), lambda status: status.write(folder / "status.json"))
sys.exit(supervisor.run())
"""


@contextmanager
def supervised(folder: Path, components: str) -> Iterator[subprocess.Popen[bytes]]:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TEST_MEMBER": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER.replace("{components}", components), str(folder)], env=environment
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(folder: Path, condition: Callable[[ClusterStatus], bool]) -> ClusterStatus:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        status = ClusterStatus.read(folder / "status.json")
        if status is not None and condition(status):
            return status
        time.sleep(0.01)
    raise AssertionError(f"not within {DEADLINE_S} s: {status}")


def members(folder: Path) -> list[int]:
    return find_processes(f"TEST_MEMBER={folder}")


def test_components_start_in_the_order_of_their_needs(tmp_path: Path) -> None:
    components = """
        Component("last", sh(f"test -e {folder}/first && test -e {folder}/task && touch {folder}/last; exec sleep 60"),
                  exists("last"), needs=("first", "task")),
        Component("task", sh(f"test -e {folder}/first && touch {folder}/task"), None, needs=("first",)),
        Component("first", sh(f"touch {folder}/first; exec sleep 60"), exists("first")),
    """
    with supervised(tmp_path, components):
        status = wait_for(tmp_path, lambda status: status.phase is Phase.READY)
    states = {name: component.state for name, component in status.components.items()}
    assert states == {"last": State.READY, "task": State.FINISHED, "first": State.READY}


def test_a_component_that_ends_while_starting_fails_the_cluster_and_its_log_is_told(tmp_path: Path) -> None:
    components = """
        Component("steady", sh("exec sleep 60"), exists(".")),
        Component("broken", sh("echo no such disk; exit 7"), exists("never"), needs=("steady",)),
    """
    with supervised(tmp_path, components) as process:
        assert process.wait(DEADLINE_S) == 1
    status = wait_for(tmp_path, lambda status: status.phase is Phase.FAILED)
    assert "broken ended with status 7" in status.message
    assert "no such disk" in status.message
    assert members(tmp_path) == []


def test_a_component_that_dies_later_comes_back(tmp_path: Path) -> None:
    with supervised(tmp_path, 'Component("mortal", sh("exec sleep 60"), exists("."))'):
        status = wait_for(tmp_path, lambda status: status.phase is Phase.READY)
        first = status.components["mortal"].pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        status = wait_for(
            tmp_path,
            lambda status: (
                status.components["mortal"].pid not in {None, first}
                and status.components["mortal"].state is State.READY
            ),
        )
    assert status.components["mortal"].num_restarts == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_component_outlives_the_supervisor(tmp_path: Path, number: signal.Signals) -> None:
    components = """
        Component("polite", sh("exec sleep 60"), exists(".")),
        Component("stubborn", sh("trap '' TERM; while :; do sleep 1; done"), exists(".")),
    """
    with supervised(tmp_path, components) as process:
        status = wait_for(tmp_path, lambda status: status.phase is Phase.READY)
        process.send_signal(number)
        process.wait(DEADLINE_S)
    pids = {component.pid for component in status.components.values()}
    deadline = time.monotonic() + DEADLINE_S
    while pids & set(members(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not pids & set(members(tmp_path))


def test_needs_that_cannot_be_met_are_refused() -> None:
    def component(name: str, *needs: str) -> Component:
        return Component(name, ("true",), None, needs)

    with pytest.raises(ClusterError, match="missing"):
        check_order([component("a", "missing")])
    with pytest.raises(ClusterError, match="circle"):
        check_order([component("a", "b"), component("b", "a")])
