"""What each client has used since this process began: requests that generate, and their tokens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Totals:
    """Of one client. `num_requests` includes those that run and those that failed."""

    num_requests: int = 0
    num_failed: int = 0
    num_running: int = 0
    num_prompt_tokens: int = 0
    num_completion_tokens: int = 0

    def end_request(self, *, has_failed: bool, num_prompt_tokens: int, num_completion_tokens: int) -> None:
        """Counts what a request that was begun has come to use; to be called once, on every path."""
        self.num_running -= 1
        self.num_failed += has_failed
        self.num_prompt_tokens += num_prompt_tokens
        self.num_completion_tokens += num_completion_tokens


class UsageBook:
    """The totals of every client; `since` is the Unix time, in seconds, from which it counts."""

    def __init__(self, *, since: int) -> None:
        self.since = since
        self._totals: dict[str, Totals] = {}

    def of(self, client: str) -> Totals:
        return self._totals.get(client) or Totals()

    def begin_request(self, client: str) -> Totals:
        """Counts a request that begins, and gives the totals that are to be told of its end."""
        totals = self._totals.setdefault(client, Totals())
        totals.num_requests += 1
        totals.num_running += 1
        return totals

    def forget(self, client: str) -> None:
        """Drops the totals of a client that is gone."""
        self._totals.pop(client, None)
