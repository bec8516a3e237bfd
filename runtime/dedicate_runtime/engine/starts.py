"""When each sequence gets its first step: seen where batches are launched, told to the API process.

It is what tells the time in the queue from the time of prefill, and which prompts still wait.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dedicate_runtime.core.batch import ScheduledBatch
    from dedicate_runtime.core.request import RequestId
    from dedicate_runtime.engine.engine import LaunchedStep, Runner


class StartWatch:
    """Sequences that wait for their first step, and the starts that nobody has been told of yet."""

    def __init__(self) -> None:
        self._expected: set[RequestId] = set()
        self._started: dict[RequestId, float] = {}

    def expect(self, request_ids: Iterable[RequestId]) -> None:
        self._expected.update(request_ids)

    def forget(self, request_ids: Iterable[RequestId]) -> None:
        """Waits no longer for sequences that have ended before they began."""
        if self._expected:
            self._expected.difference_update(request_ids)

    def note_launch(self, batch: ScheduledBatch) -> None:
        """Notes the first row of each sequence."""
        if not self._expected:
            return
        now = time.monotonic()
        for row in batch.rows:
            if row.request_id in self._expected:
                self._expected.discard(row.request_id)
                self._started[row.request_id] = now

    def take(self) -> dict[RequestId, float]:
        """Gives the starts since the last call, each once."""
        started, self._started = self._started, {}
        return started


class WatchedRunner:
    """A runner whose launches a watch sees."""

    def __init__(self, runner: Runner, watch: StartWatch) -> None:
        self._runner = runner
        self._watch = watch

    @property
    def max_steps_ahead(self) -> int:
        return self._runner.max_steps_ahead

    def launch(self, batch: ScheduledBatch) -> LaunchedStep:
        self._watch.note_launch(batch)
        return self._runner.launch(batch)
