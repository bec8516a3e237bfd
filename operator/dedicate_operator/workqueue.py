"""A queue of keys in which no key stands twice and none is worked on by two workers at once.

`KeySchedule` is the pure part and is told the time; `WorkQueue` waits. Both hold at most one entry for each key, so
their size is bounded by the number of endpoints.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dedicate_operator.metrics import QueueState

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays that double from `base_s` to `limit_s`."""

    base_s: float = 0.2
    limit_s: float = 30.0

    def delay_s(self, num_failures: int, jitter: float) -> float:
        """Return the delay after the `num_failures`-th failure in a row.

        Args:
            num_failures: 1 or more.
            jitter: from 0 to 1; spreads the delay between half of it and all of it.
        """
        # 2 ** 32 is beyond any limit and within a float.
        full = min(self.limit_s, self.base_s * 2.0 ** min(num_failures - 1, 32))
        return full * (0.5 + 0.5 * jitter)


class KeySchedule(Generic[KeyT]):
    """Which key is worked on next, and which are due later."""

    def __init__(self) -> None:
        # Since when each key has waited for a worker.
        self._ready: dict[KeyT, float] = {}
        self._due: dict[KeyT, float] = {}
        self._heap: list[tuple[float, int, KeyT]] = []
        self._active: dict[KeyT, float] = {}
        self._dirty: set[KeyT] = set()
        self._sequence = itertools.count()

    def add(self, key: KeyT, now: float) -> None:
        """Make the key ready; while it is worked on, remember that it must be worked on again."""
        self._due.pop(key, None)
        if key in self._active:
            self._dirty.add(key)
        else:
            self._ready.setdefault(key, now)

    def add_at(self, key: KeyT, due: float) -> None:
        """Make the key ready at the time `due`, or at an earlier time that it already has."""
        if key in self._ready or key in self._dirty or self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._sequence), key))

    def take(self, now: float) -> KeyT | None:
        """Return the key that has been ready for longest and mark it as worked on; None if none is ready."""
        self._promote(now)
        if not self._ready:
            return None
        key = next(iter(self._ready))
        del self._ready[key]
        self._active[key] = now
        return key

    def finish(self, key: KeyT, now: float) -> None:
        """End the work on a key that was taken."""
        del self._active[key]
        if key in self._dirty:
            self._dirty.discard(key)
            self._due.pop(key, None)
            self._ready[key] = now

    def next_due(self) -> float | None:
        """Return when the next key becomes ready by itself."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def num_ready(self) -> int:
        """Count the keys that wait for a worker."""
        return len(self._ready)

    def longest_work_s(self, now: float) -> float:
        """Return for how long the longest work that is not finished has gone on, 0 if there is none."""
        return now - min(self._active.values(), default=now)

    def longest_wait_s(self, now: float) -> float:
        """Return for how long the key that is taken next has been ready, 0 if none is."""
        self._promote(now)
        return now - next(iter(self._ready.values()), now)

    def count(self, now: float) -> tuple[int, int, int]:
        """Return how many keys are ready, due later, and worked on."""
        self._promote(now)
        return len(self._ready), len(self._due), len(self._active)

    def __len__(self) -> int:
        """Count the keys that are ready, due later or worked on."""
        return len(self._ready.keys() | self._due.keys() | self._active.keys())

    def _promote(self, now: float) -> None:
        while (due := self.next_due()) is not None and due <= now:
            key = heapq.heappop(self._heap)[2]
            del self._due[key]
            self.add(key, due)


class WorkQueue(Generic[KeyT]):
    """The schedule with a clock and a memory of failures. Used from one event loop only."""

    def __init__(self, *, clock: Callable[[], float], random: Callable[[], float], backoff: Backoff) -> None:
        self._schedule: KeySchedule[KeyT] = KeySchedule()
        self._failures: dict[KeyT, int] = {}
        self._num_retries = 0
        self._clock = clock
        self._random = random
        self._backoff = backoff
        self._changed = asyncio.Event()

    def add(self, key: KeyT) -> None:
        self._schedule.add(key, self._clock())
        self._changed.set()

    def add_after(self, key: KeyT, delay_s: float) -> None:
        self._schedule.add_at(key, self._clock() + delay_s)
        self._changed.set()

    def retry(self, key: KeyT, at_least_s: float = 0.0) -> float:
        """Make the key ready after a delay that grows with each failure in a row; return the delay."""
        self._failures[key] = self._failures.get(key, 0) + 1
        self._num_retries += 1
        delay_s = max(at_least_s, self._backoff.delay_s(self._failures[key], self._random()))
        self.add_after(key, delay_s)
        return delay_s

    def forget_failures(self, key: KeyT) -> None:
        self._failures.pop(key, None)

    async def get(self) -> KeyT:
        """Wait for a key and mark it as worked on; the caller owes a `done` for it."""
        while True:
            key = self._schedule.take(self._clock())
            if key is not None:
                return key
            self._changed.clear()
            due = self._schedule.next_due()
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - self._clock())):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: KeyT) -> None:
        self._schedule.finish(key, self._clock())
        self._changed.set()

    def num_ready(self) -> int:
        return self._schedule.num_ready()

    def read_state(self, since: float | None) -> QueueState:
        """Return what metrics tell of it; nothing waits before `since`, when work began, or at all without it."""
        now = self._clock()
        num_ready, num_delayed, num_active = self._schedule.count(now)
        oldest_s = 0.0 if since is None else min(self._schedule.longest_wait_s(now), now - since)
        return QueueState(0 if since is None else num_ready, num_delayed, num_active, oldest_s, self._num_retries)

    def longest_work_s(self) -> float:
        return self._schedule.longest_work_s(self._clock())

    def __len__(self) -> int:
        return len(self._schedule)
