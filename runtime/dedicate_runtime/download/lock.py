"""One download at a time for each repository of a cache, whichever pod and node it runs on.

A POSIX lock on a file in the cache, which NFS hands on to its server, and which the kernel gives back whatever happens
to its holder. Beside it the holder writes a beat, which says how far it is: the others show that, and notice by it a
lock whose holder is gone with its node. Where a file system has no locks, the beat alone has to do.

Nothing depends on the lock but the bandwidth: content is taken into the cache only under its own digest.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_logger = logging.getLogger(__name__)

_POLL_S = 0.5
BEAT_S = 2.0
SILENCE_S = 60.0
"""A holder that has not written for so long has lost its node, or the cache; many beats, as shared disks stall."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL})


class CacheLock:
    """The lock of one name in one folder of a cache."""

    def __init__(self, folder: Path, name: str, *, silence_s: float = SILENCE_S) -> None:
        self._path = folder / "locks" / f"{name}.lock"
        self._beat = folder / "beats" / f"{name}.json"
        self._silence_s = silence_s

    @contextlib.contextmanager
    def hold(self, describe: Callable[[], dict[str, Any]], show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
        """Wait until nobody else downloads, then keep others waiting.

        Args:
            describe: what to tell those who wait, asked at every beat.
            show: is given what the holder tells, while this waits.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._beat.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o664)
        try:
            self._wait(descriptor, show)
            with self._beating(describe):
                yield
        finally:
            os.close(descriptor)

    def _wait(self, descriptor: int, show: Callable[[dict[str, Any]], None]) -> None:
        seen, since, is_told = b"", time.monotonic(), False
        while not self._is_taken(descriptor):
            beat = self._read_beat()
            if beat != seen:
                seen, since = beat, time.monotonic()
                show(_parse(beat))
            elif time.monotonic() - since > self._silence_s:
                _logger.warning("The holder of %s has been silent for %.0f s; going on", self._path, self._silence_s)
                return
            if not is_told:
                is_told = True
                holder = _parse(beat).get("holder", "another process")
                _logger.info("Waiting for %s, which downloads into the same cache", holder)
            time.sleep(_POLL_S)

    def _is_taken(self, descriptor: int) -> bool:
        """Try to take the lock; tell whether it is ours now."""
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return not self._read_beat()
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                return False
            raise
        return True

    def _read_beat(self) -> bytes:
        try:
            return self._beat.read_bytes()
        except OSError:
            return b""

    @contextlib.contextmanager
    def _beating(self, describe: Callable[[], dict[str, Any]]) -> Iterator[None]:
        ended = threading.Event()
        holder = f"{socket.gethostname()}/{uuid.uuid4().hex[:8]}"

        def beat() -> None:
            count = 0
            while True:
                self._write_beat({"holder": holder, "beat": count, **describe()})
                count += 1
                if ended.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, name="beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            if _parse(self._read_beat()).get("holder") == holder:
                with contextlib.suppress(OSError):
                    self._beat.unlink()

    def _write_beat(self, document: dict[str, Any]) -> None:
        passing = self._beat.with_name(f".{self._beat.name}.{uuid.uuid4().hex[:8]}")
        # A full disk stops the beats, not the download that finds out about it.
        with contextlib.suppress(OSError):
            try:
                passing.write_text(json.dumps(document), encoding="utf-8")
                passing.replace(self._beat)
            finally:
                passing.unlink(missing_ok=True)


def _parse(beat: bytes) -> dict[str, Any]:
    try:
        document = json.loads(beat)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
