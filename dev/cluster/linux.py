"""The few system calls that Python 3.11 has no names for.

Sources: prctl(2), unshare(2), setns(2), namespaces(7).
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def die_with_parent(parent: int) -> None:
    """Make the kernel kill the calling process when its parent, of this process id, ends.

    For the child between fork and exec. The kernel watches the *thread* that forked, so that must be one that
    lives as long as the parent does.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:  # it ended before the line above took effect
        os._exit(1)


def enter_new_mount_namespace() -> None:
    """Give the calling process a private copy of the mount table."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")


@contextmanager
def new_pid_namespace_for_child() -> Iterator[None]:
    """Let the one process that is started inside be the init of a new pid namespace.

    When that process ends, in whatever way, the kernel ends every process in the namespace.
    """
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(_CLONE_NEWPID), "unshare")
        try:
            yield
        finally:
            _check(_libc.setns(own, _CLONE_NEWPID), "setns")
    finally:
        os.close(own)


def innermost_pid(pid: int) -> int | None:
    """Return what a process is called in its own pid namespace, or None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    names = next(line for line in status.splitlines() if line.startswith("NSpid:"))
    return int(names.split()[-1])


def find_processes(marker: str) -> list[int]:
    """Return the processes that carry `NAME=value` in the environment they were started with."""
    wanted = marker.encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = environment.read_bytes().split(b"\0")
        except OSError:  # it ended, or it is another user's
            continue
        if wanted in variables:
            found.append(int(environment.parent.name))
    return found
