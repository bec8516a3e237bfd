"""Start components in the order of their needs, wait until each is ready, restart what dies, end all of it.

It knows nothing of Kubernetes. It runs in one thread: the kernel ties the components' lives to the thread that
started them, and as the init of a pid namespace it also reaps what others leave behind.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from dev.cluster.component import Component, check_order
from dev.cluster.linux import die_with_parent
from dev.cluster.status import ClusterStatus, ComponentStatus, Phase, State

_START_DEADLINE_S = 90.0
_STOP_GRACE_S = 3.0
_PROBE_INTERVAL_S = 0.05
# After the cluster is up: how soon a component that died comes back, doubling while it keeps dying.
_MIN_RESTART_DELAY_S = 0.5
_MAX_RESTART_DELAY_S = 10.0
_LOG_TAIL_LINES = 8


class ComponentFailedError(Exception):
    """A component ended, or was not ready in time, while the cluster was starting."""


@dataclass
class _Entry:
    component: Component
    status: ComponentStatus
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    probe_at: float = 0.0
    restart_at: float | None = None
    obstacle: str = "not asked yet"

    @property
    def is_satisfied(self) -> bool:
        return self.status.state in {State.READY, State.FINISHED}


class Supervisor:
    """The components of one cluster, from the first start to the last exit."""

    def __init__(
        self,
        components: Sequence[Component],
        logs: Path,
        status: ClusterStatus,
        publish: Callable[[ClusterStatus], None],
    ) -> None:
        check_order(components)
        self._status = status
        self._publish = publish
        self._logs = logs
        self._entries = {
            component.name: _Entry(component, status.components.setdefault(component.name, ComponentStatus()))
            for component in components
        }
        self._started_at = time.monotonic()
        self._wake_reader, self._wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stop_requested = False

    def run(self) -> int:
        """Bring the components up and keep them up until SIGTERM or SIGINT; return an exit status."""
        signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        try:
            while not self._stop_requested:
                changed = self._reap()
                changed |= self._start_due()
                changed |= self._probe_due()
                changed |= self._note_ready()
                if changed:
                    self._publish(self._status)
                self._sleep()
        except ComponentFailedError as error:
            self._status.phase, self._status.message = Phase.FAILED, str(error)
            self._publish(self._status)
            return 1
        else:
            return 0
        finally:
            self._stop_all()

    def _request_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop_requested = True

    def _sleep(self) -> None:
        settled = self._status.phase is Phase.READY and all(entry.is_satisfied for entry in self._entries.values())
        select.select([self._wake_reader], [], [], None if settled else _PROBE_INTERVAL_S)
        with suppress(BlockingIOError):
            os.read(self._wake_reader, 4096)

    def _start_due(self) -> bool:
        """Start what waits for nothing any more."""
        changed = False
        for entry in self._entries.values():
            waiting = entry.status.state is State.WAITING and all(
                self._entries[need].is_satisfied for need in entry.component.needs
            )
            due = entry.restart_at is not None and entry.restart_at <= time.monotonic()
            if waiting or due:
                self._start(entry)
                changed = True
        return changed

    def _start(self, entry: _Entry) -> None:
        component, parent = entry.component, os.getpid()
        with (self._logs / f"{component.name}.log").open("ab") as log:
            entry.process = subprocess.Popen(
                component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | component.environment,
                start_new_session=True,
                preexec_fn=lambda: die_with_parent(parent),  # noqa: PLW1509 - this process has one thread
            )
        entry.started_at = time.monotonic()
        entry.probe_at = entry.started_at
        entry.restart_at = None
        entry.status.state = State.STARTING
        entry.status.pid = entry.process.pid

    def _reap(self) -> bool:
        """Collect every child that ended, ours and adopted ones, and decide what follows."""
        ended: dict[int, int] = {}
        while True:
            try:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(wait_status)
        changed = False
        for entry in self._entries.values():
            if entry.process is not None and entry.process.pid in ended:
                exit_code = ended[entry.process.pid]
                entry.process.returncode = exit_code
                entry.process = None
                entry.status.pid = None
                self._settle_exit(entry, exit_code)
                changed = True
        return changed

    def _settle_exit(self, entry: _Entry, exit_code: int) -> None:
        if entry.component.is_task and exit_code == 0:
            entry.status.state = State.FINISHED
            entry.status.ready_after_s = round(time.monotonic() - self._started_at, 2)
            return
        if self._status.phase is not Phase.READY:
            raise ComponentFailedError(self._describe(entry, f"ended with status {exit_code}"))
        lived_s = time.monotonic() - entry.started_at
        delay_s = min(_MIN_RESTART_DELAY_S * 2**entry.status.num_restarts, _MAX_RESTART_DELAY_S)
        if lived_s > 10 * _MAX_RESTART_DELAY_S:
            delay_s = _MIN_RESTART_DELAY_S
        entry.restart_at = time.monotonic() + delay_s
        entry.status.state = State.RESTARTING
        entry.status.num_restarts += 1

    def _probe_due(self) -> bool:
        changed = False
        for entry in self._entries.values():
            now = time.monotonic()
            probe = entry.component.ready
            if entry.status.state is not State.STARTING or now < entry.probe_at:
                continue
            if self._status.phase is Phase.STARTING and now - entry.started_at > _START_DEADLINE_S:
                raise ComponentFailedError(
                    self._describe(entry, f"was not ready after {_START_DEADLINE_S:.0f} s ({entry.obstacle})")
                )
            if probe is None:
                continue
            obstacle = probe.find_obstacle()
            if obstacle is None:
                entry.status.state = State.READY
                entry.status.ready_after_s = round(time.monotonic() - self._started_at, 2)
                changed = True
            else:
                entry.obstacle = obstacle
                entry.probe_at = time.monotonic() + _PROBE_INTERVAL_S
        return changed

    def _note_ready(self) -> bool:
        if self._status.phase is Phase.READY or not all(entry.is_satisfied for entry in self._entries.values()):
            return False
        self._status.phase = Phase.READY
        self._status.ready_after_s = round(time.monotonic() - self._started_at, 2)
        return True

    def _stop_all(self) -> None:
        """Ask every component to end, then insist."""
        deadline = time.monotonic() + _STOP_GRACE_S
        processes = [entry.process for entry in self._entries.values() if entry.process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _describe(self, entry: _Entry, problem: str) -> str:
        log = self._logs / f"{entry.component.name}.log"
        tail = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(
            [f"{entry.component.name} {problem}; its log, {log}, ends with:", *(f"  {line}" for line in tail)]
        )
