"""Locks on files, which the kernel gives back however their holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

# `is_locked` holds a free lock for an instant; whoever wants it meanwhile asks again.
_PATIENCE_S = 0.2
_RETRY_S = 0.02


def try_lock(path: Path) -> TextIO | None:
    """Return the locked file, which holds the lock until it is closed, or None where another holds it."""
    deadline = time.monotonic() + _PATIENCE_S
    while (file := _lock(path, fcntl.LOCK_EX | fcntl.LOCK_NB)) is None and time.monotonic() < deadline:
        time.sleep(_RETRY_S)
    return file


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock; leaves no file behind."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Wait for the lock and hold it; the file is gone afterwards."""
    file = _lock(path, fcntl.LOCK_EX)
    assert file is not None
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path, operation: int) -> TextIO | None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            file.close()
            return None
        # The holder before us may have removed the file: then ours is a lock that nobody else will ever see.
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()
