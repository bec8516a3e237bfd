"""Whether a request may join the queue, and if not, when it is worth coming back.

Four bounds, in the order in which they are looked at: unfinished sequences, waiting prompt tokens, the time until the
first step, and the request's own deadline. Of each of the first three a part is kept:

* An eighth of the queue, in sequences and in tokens, is for clients that hold less than that, so that no client keeps
  others out by filling it. Where there are no keys all are one client and nothing is kept; nor is of a queue of under
  eight, nor ever of the places that run.
* A quarter of the time is for requests that come back, or the new ones of an overload would take every place that
  those were told to come back for.

Who is refused is told when its turn would be: each refusal takes the next free moment of its client's share, so that
those who come back come one after the other and not all at once. The moments are a queue in front of the queue, and
nobody has to be held in it. A new request that is let in while such moments are given out has taken the place of one
who did not come back, so the later ones move up.

Pure: time and randomness come from outside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dedicate_runtime.engine.interface import NO_TERMS
from dedicate_runtime.errors import QueueFullError, RefusalReason, TooManySequencesError

if TYPE_CHECKING:
    from random import Random

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.engine.crowd import Crowd
    from dedicate_runtime.engine.interface import Terms
    from dedicate_runtime.engine.turnover import TurnoverMeter

_KEPT_FOR_OTHERS = 1 / 8
_KEPT_FOR_RETURNS = 1 / 4
"""Both arbitrary within their order: large enough for a few sequences, small enough to miss by those who may not."""

MIN_RETRY_S = 1.0
MAX_RETRY_S = 120.0
"""`Retry-After` is in whole seconds, and clients honour at most 120 (docs/api.md)."""
_JITTER = 1 / 8
"""By how much of it a return may be later than it could be; arbitrary."""
_UNKNOWN_ROUND_S = 5.0
"""For all places to come free once, while nobody knows; arbitrary: a few completions end in that time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request wants of the queue. `num_tokens` are those of all its prompts, 0 while they are not counted."""

    client_id: str
    num_sequences: int
    num_tokens: int = 0
    terms: Terms = NO_TERMS


class Admission:
    """The bounds of one configuration, and the moments that have been given to those who were refused."""

    def __init__(self, config: EngineConfig, turnover: TurnoverMeter, random: Random) -> None:
        self._max_sequences = config.max_sequences
        self._kept_sequences = int(config.max_queued_requests * _KEPT_FOR_OTHERS)
        self._max_tokens = config.max_queued_tokens
        self._kept_tokens = int(config.max_queued_tokens * _KEPT_FOR_OTHERS)
        self._max_wait_s = config.max_queue_seconds
        self._num_places = config.max_num_seqs
        self._turnover = turnover
        self._random = random
        # By client, when its next refused request may come back; what is past is dropped.
        self._returns: dict[str, float] = {}

    def check(self, asked: Asked, crowd: Crowd, now: float) -> None:
        """Checks that a request may join `crowd`.

        A prompt over the bound for tokens is let in while no other waits, or it never would be.

        Raises:
            QueueFullError: it may not, and when to come back.
            TooManySequencesError: it never may.
        """
        self._check_places(asked, crowd, now)
        self._check_tokens(asked, crowd, now)
        self._check_time(asked, crowd, now)

    def note_admission(self, asked: Asked, crowd: Crowd, now: float) -> None:
        """Takes in that a request has joined `crowd`."""
        at = self._returns.get(asked.client_id)
        if at is not None and not asked.terms.is_return:
            self._returns[asked.client_id] = at - self._expect_turn_s(asked, crowd, now)

    def _check_places(self, asked: Asked, crowd: Crowd, now: float) -> None:
        most, total = self._max_sequences, crowd.total.num_sequences
        kept = self._kept_sequences if asked.client_id else 0
        if asked.num_sequences > most - kept:
            raise TooManySequencesError(f"At most {most - kept} sequences in one request.")
        own = crowd.find(asked.client_id).num_sequences
        num_over = total + asked.num_sequences - (most if own + asked.num_sequences <= kept else most - kept)
        if num_over > 0:
            sentence = f"The queue is full: {total} of {most} sequences are unfinished."
            raise self._refuse(asked, crowd, now, RefusalReason.QUEUE_FULL, sentence, num_turns=num_over)

    def _check_tokens(self, asked: Asked, crowd: Crowd, now: float) -> None:
        most, total = self._max_tokens, crowd.total.num_waiting_tokens
        if not total:
            return
        kept = self._kept_tokens if asked.client_id else 0
        own = crowd.find(asked.client_id).num_waiting_tokens
        num_over = total + asked.num_tokens - (most if own + asked.num_tokens <= kept else most - kept)
        if num_over > 0:
            sentence = f"The queue is full: {total} of {most} prompt tokens wait."
            num_turns = min(num_over / total, 1.0) * crowd.total.num_waiting
            raise self._refuse(asked, crowd, now, RefusalReason.QUEUE_TOKENS, sentence, num_turns=num_turns)

    def _check_time(self, asked: Asked, crowd: Crowd, now: float) -> None:
        num_ahead = crowd.count_ahead(asked.client_id)
        wait_s = self._turnover.expect_wait_s(
            now,
            num_ahead=num_ahead,
            num_running=crowd.num_running,
            passing=crowd.expect_passing(asked.client_id),
        )
        if not wait_s:
            return
        most_s = self._max_wait_s * (1.0 if asked.terms.is_return else 1 - _KEPT_FOR_RETURNS)
        if wait_s > most_s:
            sentence = f"The queue is full: {wait_s:.1f} s to the first token are expected."
            raise self._refuse(asked, crowd, now, RefusalReason.QUEUE_TIME, sentence, wait_s=wait_s - most_s)
        if asked.terms.expires_at is not None and now + wait_s > asked.terms.expires_at:
            left_s = max(asked.terms.expires_at - now, 0.0)
            sentence = (
                f"The request would not begin in time: it has {left_s:.1f} s left, and {wait_s:.1f} s are expected."
            )
            raise self._refuse(asked, crowd, now, RefusalReason.DEADLINE, sentence, wait_s=wait_s - left_s)

    def _refuse(
        self,
        asked: Asked,
        crowd: Crowd,
        now: float,
        reason: RefusalReason,
        sentence: str,
        *,
        num_turns: float = 0.0,
        wait_s: float = 0.0,
    ) -> QueueFullError:
        """Gives the request the next moment at which its client may come back.

        That is after `wait_s` and after `num_turns` places have come free, and not before the returns that its client
        has been given already have had their turn.
        """
        if self._turnover.expect_gap_s(now) is None:
            wait_s = _UNKNOWN_ROUND_S
        self._returns = {client_id: at for client_id, at in self._returns.items() if at > now}
        at = max(now + wait_s + num_turns * self._expect_gap_s(now), self._returns.get(asked.client_id, now))
        at = min(at, now + MAX_RETRY_S / (1 + _JITTER))
        self._returns[asked.client_id] = at
        self._returns[asked.client_id] += self._expect_turn_s(asked, crowd, now)
        retry_after_s = max((at - now) * (1 + _JITTER * self._random.random()), MIN_RETRY_S)
        return QueueFullError(sentence, reason=reason, retry_after_s=retry_after_s)

    def _expect_turn_s(self, asked: Asked, crowd: Crowd, now: float) -> float:
        """Seconds that the share of the request's client takes to make room for it."""
        num_clients = max(len(self._returns), crowd.num_waiting_clients, 1)
        return asked.num_sequences * num_clients * self._expect_gap_s(now)

    def _expect_gap_s(self, now: float) -> float:
        gap_s = self._turnover.expect_gap_s(now)
        return _UNKNOWN_ROUND_S / self._num_places if gap_s is None else gap_s
