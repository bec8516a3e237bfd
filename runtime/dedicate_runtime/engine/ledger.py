"""The API process's books: every sequence that was submitted and has not had its last output.

By them admission is decided at once, without asking the engine, and the times of a sequence's life are taken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from dedicate_runtime.engine.admission import Admission, Asked
from dedicate_runtime.engine.crowd import Crowd
from dedicate_runtime.engine.interface import SequenceTimes
from dedicate_runtime.engine.turnover import TurnoverMeter
from dedicate_runtime.errors import QueueFullError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import Request, RequestId, SequenceOutput
    from dedicate_runtime.engine.interface import EngineObserver, Terms
    from dedicate_runtime.engine.streams import GroupStream


@dataclass(slots=True)
class _Entry:
    """One sequence. Times are those of `time.monotonic`."""

    stream: GroupStream
    client_id: str
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

    def __init__(
        self, config: EngineConfig, *, clock: Callable[[], float] = time.monotonic, random: Random | None = None
    ) -> None:
        self.observer: EngineObserver | None = None
        self._clock = clock
        self._turnover = TurnoverMeter(config.max_num_seqs)
        # Of no secret: it spreads out who comes back when.
        self._admission = Admission(config, self._turnover, random or Random())  # noqa: S311
        self._crowd = Crowd()
        self._entries: dict[RequestId, _Entry] = {}
        # In order of arrival, so the first has waited longest.
        self._waiting: dict[RequestId, _Entry] = {}
        self._num_ended = 0
        """Of those that ran, since the step before."""

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def request_ids(self) -> list[RequestId]:
        return list(self._entries)

    @property
    def expected_wait_s(self) -> float | None:
        """Seconds until the last of those that wait now has its first step; None if nobody knows."""
        num_ahead = len(self._waiting) - 1
        return self._turnover.expect_wait_s(self._clock(), num_ahead=num_ahead, num_running=self._crowd.num_running)

    def check_room(self, asked: Asked) -> None:
        """Checks that a client's sequences may be added.

        Raises:
            QueueFullError: they may not just now, by one of the bounds in `admission`.
            TooManySequencesError: they never may.
        """
        try:
            self._admission.check(asked, self._crowd, self._clock())
        except QueueFullError as error:
            if self.observer is not None:
                self.observer.observe_refusal(error.reason)
            raise

    def add(self, requests: Sequence[Request], stream: GroupStream, terms: Terms) -> None:
        """Adds all of `requests`, which are one client's, or none.

        Raises:
            QueueFullError, TooManySequencesError: there is no room, as `check_room` says.
            ValueError: an id is that of an unfinished request.
        """
        if any(request.request_id in self._entries for request in requests):
            raise ValueError("a request id is in use")
        client_id = requests[0].client_id
        num_tokens = sum(len(request.prompt_token_ids) for request in requests)
        asked = Asked(client_id=client_id, num_sequences=len(requests), num_tokens=num_tokens, terms=terms)
        self.check_room(asked)
        now = self._clock()
        self._admission.note_admission(asked, self._crowd, now)
        for request in requests:
            entry = _Entry(stream, client_id, len(request.prompt_token_ids), now)
            self._entries[request.request_id] = self._waiting[request.request_id] = entry
            self._crowd.enter(client_id, entry.num_prompt_tokens)

    def take_step(self, started: Mapping[RequestId, float], outputs: Iterable[SequenceOutput]) -> None:
        """Takes in what a step brought: who left the queue in it, and the outputs, which go to their streams."""
        self._note_starts(started)
        num_running = self._crowd.num_running + self._num_ended
        waiting_since = next((entry.submitted_at for entry in self._waiting.values()), None)
        for output in outputs:
            self.deliver(output)
        self._turnover.note_step(
            self._clock(), waiting_since=waiting_since, num_running=num_running, num_ended=self._num_ended
        )
        self._num_ended = 0

    def _note_starts(self, started: Mapping[RequestId, float]) -> None:
        """Takes sequences out of the queue; those that have ended meanwhile are passed over."""
        for request_id, started_at in started.items():
            entry = self._waiting.pop(request_id, None)
            if entry is not None:
                entry.started_at = started_at
                self._crowd.begin(entry.client_id, entry.num_prompt_tokens, is_contended=self._turnover.is_contended)
                if self.observer is not None:
                    self.observer.observe_queue_time(started_at - entry.submitted_at)

    def deliver(self, output: SequenceOutput) -> None:
        """Hands an output to its stream; those of aborted sequences, sent before the abort arrived, are dropped."""
        entry = self._entries.get(output.request_id)
        if entry is None:
            return
        if entry.first_token_at is None and output.token_ids:
            entry.first_token_at = self._clock()
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
        was_waiting = self._waiting.pop(request_id, None) is not None
        self._crowd.leave(entry.client_id, entry.num_prompt_tokens, is_waiting=was_waiting)
        self._num_ended += not was_waiting
        now = self._clock()
        if entry.first_token_at is not None and self.observer is not None:
            self.observer.observe_decode_time(now - entry.first_token_at)
        entry.stream.note_end(entry.times_until(now))
        return True
