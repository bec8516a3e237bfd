"""How long trouble with the hub is borne: it is tried again for as long as bytes still come now and then."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING

from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from dedicate_runtime.download.hub import HubTroubleError
    from dedicate_runtime.download.progress import Progress

_FIRST_S, _LONGEST_S = 0.5, 15.0


class StoppedError(Exception):
    """Another thread of the same download has failed; this one gives up without a word."""


class Patience:
    """Shared by all threads of a download: what one receives gives all of them time again."""

    def __init__(self, limit_s: float, progress: Progress, *, where: str, what: str) -> None:
        self.limit_s = limit_s
        self._progress = progress
        self._where, self._what = where, what
        self._fed_at = time.monotonic()
        self._stopping = threading.Event()

    def feed(self) -> None:
        """Note that the hub delivers."""
        self._fed_at = time.monotonic()

    def stop(self) -> None:
        """End the waits and the downloads of all threads."""
        self._stopping.set()

    def check(self) -> None:
        """Raise StoppedError once another thread has failed."""
        if self._stopping.is_set():
            raise StoppedError

    def bear(self, trouble: HubTroubleError, attempt: int) -> None:
        """Wait before the next attempt, longer each time.

        Raises:
            StartError: HUB_UNREACHABLE, the hub has delivered nothing for too long.
            StoppedError: another thread has failed meanwhile.
        """
        silent_s = time.monotonic() - self._fed_at
        if silent_s >= self.limit_s:
            raise StartError(
                ExitCode.HUB_UNREACHABLE,
                f"The hub at {self._where} has delivered nothing of {self._what} for {silent_s:.0f} s: "
                f"{trouble.reason}.",
            ) from trouble
        self._progress.note_trouble(f"the hub at {self._where} does not deliver: {trouble.reason}")
        pause_s = min(_LONGEST_S, _FIRST_S * 2.0 ** min(attempt, 16)) * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        # Never beyond the end of patience by much, whatever the hub asks for.
        pause_s = min(max(pause_s, trouble.retry_after_s or 0.0), max(self.limit_s - silent_s, 0.1))
        if self._stopping.wait(pause_s):
            raise StoppedError
