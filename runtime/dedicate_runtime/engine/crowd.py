"""Who has how much in the books: unfinished sequences by client, and what of them waits."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

_NUM_BEGUN = 64
"""Newest begins by which it is told how many are overtaken; arbitrary."""
_MAX_PASSING = 0.9
"""Keeps what is expected finite; arbitrary."""


@dataclass(slots=True)
class Load:
    """What one client has, or all of them together. Tokens are those of prompts that wait."""

    num_sequences: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0

    def add(self, num_sequences: int, num_waiting: int, num_tokens: int) -> None:
        self.num_sequences += num_sequences
        self.num_waiting += num_waiting
        self.num_waiting_tokens += num_tokens


_NOTHING = Load()


class Crowd:
    """Loads by client; a client is known while it has something."""

    def __init__(self) -> None:
        self.total = Load()
        self._by_client: dict[str, Load] = {}
        # Of the newest begins, whose they were if their client had nothing else waiting, else None.
        self._passing: deque[str | None] = deque(maxlen=_NUM_BEGUN)

    def __len__(self) -> int:
        return len(self._by_client)

    @property
    def num_running(self) -> int:
        return self.total.num_sequences - self.total.num_waiting

    @property
    def num_waiting_clients(self) -> int:
        return sum(load.num_waiting > 0 for load in self._by_client.values())

    def find(self, client_id: str) -> Load:
        """Gives a client's load, to be read only."""
        return self._by_client.get(client_id, _NOTHING)

    def enter(self, client_id: str, num_tokens: int) -> None:
        """One more sequence waits."""
        self._add(client_id, 1, 1, num_tokens)

    def begin(self, client_id: str, num_tokens: int, *, is_contended: bool) -> None:
        """One of those that wait runs; `is_contended` says whether there were more of them than places."""
        self._add(client_id, 0, -1, -num_tokens)
        if is_contended:
            self._passing.append(None if self.find(client_id).num_waiting else client_id)

    def leave(self, client_id: str, num_tokens: int, *, is_waiting: bool) -> None:
        """One is gone: of those that wait, or of those that run."""
        self._add(client_id, -1, -is_waiting, -num_tokens if is_waiting else 0)

    def _add(self, client_id: str, num_sequences: int, num_waiting: int, num_tokens: int) -> None:
        load = self._by_client.setdefault(client_id, Load())
        for counted in (load, self.total):
            counted.add(num_sequences, num_waiting, num_tokens)
        if not load.num_sequences:
            del self._by_client[client_id]

    def count_ahead(self, client_id: str) -> int:
        """Waiting sequences that begin before one more of this client does.

        Turns go round: before a client's k-th sequence each other client has k turns, if it has so many waiting. That
        is what the scheduler's fair order comes to where all sequences cost alike.
        """
        own = self.find(client_id).num_waiting
        if own == self.total.num_waiting:
            return own
        others = (load.num_waiting for other, load in self._by_client.items() if other != client_id)
        return own + sum(min(num_waiting, own + 1) for num_waiting in others)

    def expect_passing(self, client_id: str) -> float:
        """The part of places, 0 to 1, that will go to others who come later and are served before this client.

        That is what clients get who never have more than one sequence waiting, if this one has: its turn comes round
        after theirs.
        """
        if not self._passing or not self.find(client_id).num_waiting:
            return 0.0
        num_passing = len(self._passing) - self._passing.count(None) - self._passing.count(client_id)
        return min(num_passing / len(self._passing), _MAX_PASSING)
