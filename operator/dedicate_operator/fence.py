"""Lets a write begin only while this process leads, and ends it before another process may.

The last thing before a request leaves, for every request that changes something.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.leadership import TRANSIT_S

# Arbitrary; a write with less time would mostly be cut.
_LEAST_S = 0.5


def read_clock() -> float:
    """Return seconds that also pass while the machine is suspended, which `time.monotonic` leaves out."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Fence:
    """Shut at first. Used from one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._until = -math.inf
        self._is_shut = False
        self._running: set[asyncio.Timeout] = set()
        self._settled_at = -math.inf
        self._idle = asyncio.Event()
        self._idle.set()

    def move(self, until: float) -> None:
        """Let writes begin until then; if that has passed, cut those that are under way."""
        self._until = until
        if until <= self._clock():
            for running in self._running:
                if not running.expired():
                    running.reschedule(asyncio.get_running_loop().time())

    def check(self) -> None:
        """Look once more, as bytes of a write are about to leave: the process may have been stopped since it began.

        Raises:
            NotLeaderError: the time is over.
        """
        if self._clock() >= self._until:
            raise NotLeaderError("no longer the leader: a write was given up before it was sent")

    async def drain(self, timeout_s: float) -> bool:
        """Let no write begin any more, and wait for those under way.

        Returns:
            whether each was answered, so that none can take effect later.
        """
        self._is_shut = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return self._clock() >= self._settled_at

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[float]:
        """Give the seconds that a write may take, and end it after them.

        Raises:
            NotLeaderError: this process does not lead, or ceased to before the write was answered.
        """
        until = self._until
        left_s = until - self._clock()
        if self._is_shut or left_s < _LEAST_S:
            raise NotLeaderError("not the leader: nothing is written")
        is_answered = False
        timeout = asyncio.timeout(left_s)
        self._running.add(timeout)
        self._idle.clear()
        try:
            async with timeout:
                yield left_s
            is_answered = True
        except ClusterError as error:
            is_answered = error.code is not None
            raise
        except TimeoutError as error:
            raise NotLeaderError("no longer the leader: a write was cut off, and may have taken effect") from error
        finally:
            if not is_answered:
                # The server may be at it still: it is as if this process had died now, with its Lease as it is.
                self._settled_at = max(self._settled_at, until + TRANSIT_S)
            self._running.discard(timeout)
            if not self._running:
                self._idle.set()
