"""The API process's books: every sequence that was submitted and has not had its last output.

By them admission is decided at once, without asking the engine, and the times of a sequence's life are taken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dedicate_runtime.engine.interface import SequenceTimes
from dedicate_runtime.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import Request, RequestId, SequenceOutput
    from dedicate_runtime.engine.interface import EngineObserver
    from dedicate_runtime.engine.streams import GroupStream


@dataclass(slots=True)
class _Entry:
    """One sequence. Times are those of `time.monotonic`."""

    stream: GroupStream
    num_prompt_tokens: int
    submitted_at: float
    started_at: float | None = None
    first_token_at: float | None = None

    def times_until(self, ended_at: float) -> SequenceTimes:
        return SequenceTimes(
            submitted_at=self.submitted_at,
            started_at=self.started_at,
            first_token_at=self.first_token_at,
            ended_at=ended_at,
        )


class Ledger:
    """Unfinished sequences, within the limits of a configuration."""

    def __init__(self, config: EngineConfig) -> None:
        self.observer: EngineObserver | None = None
        self._max_sequences = config.max_sequences
        self._max_waiting_tokens = config.max_queued_tokens
        self._entries: dict[RequestId, _Entry] = {}
        self._num_waiting_tokens = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def request_ids(self) -> list[RequestId]:
        return list(self._entries)

    def check_room(self, requests: Sequence[Request]) -> None:
        """Checks that all of `requests` may be added.

        Raises:
            QueueFullError: they exceed the bound for sequences, or the one for waiting prompt tokens. A prompt over
                the latter is let in while no other waits, or it never would be.
            ValueError: an id is that of an unfinished request.
        """
        if any(request.request_id in self._entries for request in requests):
            raise ValueError("a request id is in use")
        most = self._max_sequences
        if len(self._entries) + len(requests) > most:
            raise QueueFullError(f"The queue is full: {len(self._entries)} of {most} sequences are unfinished.")
        most, num_tokens = self._max_waiting_tokens, _count_tokens(requests)
        if self._num_waiting_tokens and self._num_waiting_tokens + num_tokens > most:
            raise QueueFullError(f"The queue is full: {self._num_waiting_tokens} of {most} prompt tokens wait.")

    def add(self, requests: Sequence[Request], stream: GroupStream) -> None:
        now = time.monotonic()
        for request in requests:
            self._entries[request.request_id] = _Entry(stream, len(request.prompt_token_ids), now)
        self._num_waiting_tokens += _count_tokens(requests)

    def note_starts(self, started: Mapping[RequestId, float]) -> None:
        """Takes sequences out of the queue; those that have ended meanwhile are passed over."""
        for request_id, started_at in started.items():
            entry = self._entries.get(request_id)
            if entry is not None and entry.started_at is None:
                entry.started_at = started_at
                self._num_waiting_tokens -= entry.num_prompt_tokens
                if self.observer is not None:
                    self.observer.observe_queue_time(started_at - entry.submitted_at)

    def deliver(self, output: SequenceOutput) -> None:
        """Hands an output to its stream; those of aborted sequences, sent before the abort arrived, are dropped."""
        entry = self._entries.get(output.request_id)
        if entry is None:
            return
        if entry.first_token_at is None and output.token_ids:
            entry.first_token_at = time.monotonic()
            if entry.started_at is not None and self.observer is not None:
                self.observer.observe_prefill_time(entry.first_token_at - entry.started_at)
        if output.finish_reason is not None:
            self.remove(output.request_id)
        entry.stream.deliver(output)

    def remove(self, request_id: RequestId) -> bool:
        """Forgets a sequence; says whether it was there."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        if entry.started_at is None:
            self._num_waiting_tokens -= entry.num_prompt_tokens
        now = time.monotonic()
        if entry.first_token_at is not None and self.observer is not None:
            self.observer.observe_decode_time(now - entry.first_token_at)
        entry.stream.note_end(entry.times_until(now))
        return True


def _count_tokens(requests: Sequence[Request]) -> int:
    return sum(len(request.prompt_token_ids) for request in requests)
