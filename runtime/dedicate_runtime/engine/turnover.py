"""How fast places come free while sequences wait for them, and so how long a new one will wait.

A place comes free when a sequence ends. Ends are counted only while they decide about somebody's wait: in steps at
whose end a sequence waits that had waited before they began. An engine that is idle, or takes in everybody at once,
does not tell how fast it would be if it were full.

Counted is by the round, which is as many ends as there are places, and not few: sequences that began together end
together, and over a round that is level. The median of three rounds is what is expected, so that one stall changes
nothing and a lasting change counts after two rounds. While the present round takes longer than rounds have taken, that
counts instead: an engine that stands still is not praised for its past.

Pure: times come from outside.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_NUM_ROUNDS = 3
_MIN_ROUND = 32
"""Ends; arbitrary: the lengths of so many answers have a mean that is worth something."""
_PLACES_WEIGHT = 1 / 8
"""Of the newest step in the mean; arbitrary."""


class TurnoverMeter:
    """Watches the steps of one engine. `num_places` is what its configuration lets run at once."""

    def __init__(self, num_places: int) -> None:
        # Fewer where the cache, not the configuration, is what sequences wait for.
        self._num_places = float(num_places)
        self._gaps_s: deque[float] = deque(maxlen=_NUM_ROUNDS)
        self._num_ended = 0
        self._elapsed_s = 0.0
        self._last_step_at: float | None = None
        self.is_contended = False
        """Whether sequences waited at the end of the last step that had waited before it."""

    def note_step(self, now: float, *, waiting_since: float | None, num_running: int, num_ended: int) -> None:
        """Takes in the end of a step.

        `waiting_since` is when the oldest of those arrived that are waiting still; `num_running` counts those that ran
        in the step, `num_ended` those of them that have ended.
        """
        last_step_at, self._last_step_at = self._last_step_at, now
        self.is_contended = last_step_at is not None and waiting_since is not None and waiting_since <= last_step_at
        if last_step_at is None or not self.is_contended:
            return
        self._elapsed_s += now - last_step_at
        if not num_ended:
            return
        self._num_places += _PLACES_WEIGHT * (num_running - self._num_places)
        self._num_ended += num_ended
        if self._num_ended >= max(self._num_places, _MIN_ROUND):
            self._gaps_s.append(self._elapsed_s / self._num_ended)
            self._elapsed_s, self._num_ended = 0.0, 0

    def expect_gap_s(self, now: float) -> float | None:
        """Seconds from one place coming free to the next; None until all have come free once."""
        if not self._gaps_s:
            return self._elapsed_s / self._num_ended if self._num_ended >= self._num_places else None
        elapsed_s = self._elapsed_s
        if self.is_contended and self._last_step_at is not None:
            elapsed_s += now - self._last_step_at
        return max(median(self._gaps_s), elapsed_s / max(self._num_places, _MIN_ROUND))

    def expect_wait_s(self, now: float, *, num_ahead: int, num_running: int, passing: float = 0.0) -> float | None:
        """Seconds until one more sequence begins behind `num_ahead` that wait; None if nobody knows.

        `passing`, under 1, is the part of places that goes to those who overtake it. 0 if there is a place for it: it
        begins with the next step.
        """
        num_free = max(self._num_places - num_running, 0.0)
        position = num_ahead + 1 - num_free
        if position <= 0:
            return 0.0
        gap_s = self.expect_gap_s(now)
        return None if gap_s is None else position * gap_s / (1 - passing)
