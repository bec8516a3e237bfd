"""Tell what a cluster left behind from what is not ours, and clean it.

Processes are known by a variable in the environment that they were started with, files by the cluster's folder,
firewall rules and links by the slot in their name. Nothing is judged by what a program is called.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

from dev.cluster import host
from dev.cluster.errors import ClusterError
from dev.cluster.linux import find_processes
from dev.cluster.locks import try_lock
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan
from dev.cluster.slots import slot_lock
from dev.cluster.status import ClusterStatus, Phase

# In the environment of every process of a cluster; its value is the cluster's folder.
MEMBER_VARIABLE = "DEDICATE_CLUSTER_MEMBER"

_DEADLINE_S = 10.0


def clean_leftovers(paths: ClusterPaths) -> None:
    """Leave nothing of a cluster whose keeper is gone: processes first, then the machine's network, then files.

    Raises:
        ClusterError: a process outlived the deadline.
    """
    _end_processes(paths)
    try:
        plan = ClusterPlan.from_json(paths.plan.read_text())
    except (FileNotFoundError, ValueError, TypeError):  # none, or cut short by a crash: the slot's next user cleans
        plan = None
    if plan is not None and plan.slot is not None:
        lock = try_lock(slot_lock(plan.slot))
        if lock is not None:  # else another cluster has the slot by now, and cleaned it when it took it
            with lock:
                host.clean(plan)
    _remove(paths.root)


def _end_processes(paths: ClusterPaths) -> None:
    marker = f"{MEMBER_VARIABLE}={paths.root}"
    deadline = time.monotonic() + _DEADLINE_S
    while remaining := [pid for pid in find_processes(marker) if pid != os.getpid()]:
        if time.monotonic() > deadline:
            raise ClusterError(f"Processes {remaining} of an earlier cluster do not end.")
        for pid in remaining:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.05)


def remove_files(paths: ClusterPaths) -> None:
    """Remove the cluster's folder; after a failure its logs and status stay, to be read."""
    status = ClusterStatus.read(paths.status)
    if status is None or status.phase is not Phase.FAILED:
        _remove(paths.root)
        return
    for path in paths.root.iterdir():
        if path not in {paths.logs, paths.status}:
            _remove(path)


def release(paths: ClusterPaths) -> None:
    """Remove what lies beside the folder, last of all; the caller holds the lock and closes it next."""
    if paths.keeper_log.exists() and paths.keeper_log.stat().st_size == 0:
        paths.keeper_log.unlink()
    paths.lock.unlink(missing_ok=True)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
