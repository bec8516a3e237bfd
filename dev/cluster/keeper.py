"""The process that owns one cluster from before its first component until after its last.

It takes the locks, writes the plan, starts the supervisor and waits. Whatever ends the supervisor (`down`, the end
of the process that the cluster was bound to, a crash) the keeper then undoes what was done to the machine. The
supervisor of a cluster with a node is the init of a pid namespace and has a mount table of its own: with it the
kernel ends every container and drops every mount, even if nobody is left to ask for it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import ExitStack

from dev.cluster import host
from dev.cluster.errors import ClusterError
from dev.cluster.leftovers import clean_leftovers, release, remove_files
from dev.cluster.linux import (
    die_with_parent,
    enter_new_mount_namespace,
    new_pid_namespace_for_child,
)
from dev.cluster.locks import try_lock
from dev.cluster.paths import ClusterPaths
from dev.cluster.plan import ClusterPlan, ClusterRequest, Profile
from dev.cluster.slots import choose_ports, take_slot
from dev.cluster.status import ClusterStatus, Phase
from dev.paths import REPOSITORY

_STOP_DEADLINE_S = 15.0


def main() -> int:
    """Keep the cluster that the request on the command line asks for; return an exit status."""
    request = ClusterRequest.from_json(sys.argv[1])
    paths = ClusterPaths.of(request.name)
    lock = try_lock(paths.lock)
    if lock is None:
        return 1  # another keeper was faster; `up` waits for its cluster
    with lock:
        # The child goes on with the lock, no longer tied to the command that started us.
        child = os.fork()
        if child > 0:
            lock.truncate(0)
            lock.write(str(child))
            lock.flush()
            os._exit(0)
        clean_leftovers(paths)
        for folder in (paths.root, paths.logs, paths.data, paths.config):
            folder.mkdir(mode=0o700, parents=True)
        status = ClusterStatus()
        status.write(paths.status)
        try:
            _keep(request, paths)
        except ClusterError as error:
            status.phase, status.message = Phase.FAILED, str(error)
            status.write(paths.status)
        remove_files(paths)
        release(paths)
        return 0


def _keep(request: ClusterRequest, paths: ClusterPaths) -> None:
    """Run the cluster until it is to end, and leave the machine as it was found."""
    plan = ClusterPlan(
        name=request.name,
        profile=request.profile,
        slot=None,
        ports=choose_ports(request.profile, request.ingress_port),
        gpus=request.gpus,
        binaries=request.binaries,
        feature_gates=request.feature_gates,
    )
    with ExitStack() as cleanup:
        if request.profile is Profile.NODE:
            plan, slot_lock = take_slot(plan)
            cleanup.enter_context(slot_lock)
            host.clean(plan)
            cleanup.callback(host.clean, plan)
            host.prepare(plan)
        paths.plan.write_text(plan.to_json())
        supervisor = _start_supervisor(plan, paths)
        cleanup.callback(_end, supervisor)
        _wait(supervisor, request.owner_pid)


def _start_supervisor(plan: ClusterPlan, paths: ClusterPaths) -> subprocess.Popen[bytes]:
    parent = os.getpid()
    command = [sys.executable, "-m", "dev.cluster.assemble", str(paths.root)]
    with (paths.logs / "supervisor.log").open("ab") as log, ExitStack() as namespaces:
        if plan.profile is Profile.NODE:
            namespaces.enter_context(new_pid_namespace_for_child())

        def before_exec() -> None:
            if plan.profile is Profile.NODE:
                enter_new_mount_namespace()
                parent_seen_from_inside = 0  # pid_namespaces(7): a parent outside the namespace
                die_with_parent(parent_seen_from_inside)
            else:
                die_with_parent(parent)

        return subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
        )  # fmt: skip


def _wait(supervisor: subprocess.Popen[bytes], owner_pid: int | None) -> None:
    """Return when the supervisor has ended, a signal asks for the end, or the owner is gone."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    poller.register(os.pidfd_open(supervisor.pid), select.POLLIN)
    if owner_pid is not None:
        try:
            poller.register(os.pidfd_open(owner_pid), select.POLLIN)
        except ProcessLookupError:
            return
    poller.poll()


def _end(supervisor: subprocess.Popen[bytes]) -> None:
    supervisor.terminate()
    try:
        supervisor.wait(timeout=_STOP_DEADLINE_S)
    except subprocess.TimeoutExpired:
        supervisor.kill()
        supervisor.wait()


if __name__ == "__main__":
    sys.exit(main())
