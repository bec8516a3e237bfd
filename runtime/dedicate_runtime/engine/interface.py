"""The seam between the API and the engine.

The API is written against `Engine`; the client of the engine process implements it, and so do the fakes of unit tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from dedicate_runtime.core.request import EngineStats, ModelInfo, Request, RequestId, SequenceOutput
from dedicate_runtime.errors import RefusalReason


class EngineState(Enum):
    """Life of an engine as its users see it."""

    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    """It has served, was lost, and is being loaded again."""
    DEAD = "dead"


class EngineLoss(Enum):
    """How an engine process was lost."""

    DIED = "died"
    HUNG = "hung"


class StepKind(Enum):
    """What a step computed: the next tokens of running sequences only, or chunks of prompts, too."""

    PREFILL = "prefill"
    DECODE = "decode"


class EngineObserver(Protocol):
    """Who counts what the engine does. Called in the event loop, once a step or once a sequence, so keep it cheap."""

    def observe_step(self, kind: StepKind, seconds: float) -> None: ...

    def observe_queue_time(self, seconds: float) -> None:
        """From a sequence's submission to its first step."""

    def observe_prefill_time(self, seconds: float) -> None:
        """From a sequence's first step to its first token."""

    def observe_decode_time(self, seconds: float) -> None:
        """From a sequence's first token to its last, or to where it was given up."""

    def observe_loss(self, cause: EngineLoss) -> None:
        """The engine process is gone and is about to be replaced."""

    def observe_refusal(self, reason: RefusalReason) -> None:
        """A request was not admitted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How long a request may wait to be admitted and served."""

    expires_at: float | None = None
    """When its answer is of no use any more, by `time.monotonic`."""
    is_return: bool = False
    """It was refused before, and has waited as it was told."""


NO_TERMS = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceTimes:
    """The life of one sequence, by `time.monotonic`. What it did not live to see is None."""

    submitted_at: float
    started_at: float | None
    """Its first step."""
    first_token_at: float | None
    ended_at: float
    """Its last token, or where it was given up."""


class OutputStream(Protocol):
    """Outputs of requests that were submitted together, in the order in which steps produced them.

    Iteration ends after each request has had its last output, and when the stream is closed. `aclose` aborts what is
    unfinished; it is safe to call twice, also while somebody iterates, and must be called on every path.
    """

    @property
    def times(self) -> Sequence[SequenceTimes]:
        """Of the sequences that have ended, in the order in which they did; of all of them once it is closed."""

    def __aiter__(self) -> AsyncIterator[SequenceOutput]: ...

    async def abort(self, request_id: RequestId) -> None:
        """Ends one sequence: its blocks are free within a step and no further output of it is delivered."""

    async def aclose(self) -> None: ...


class Engine(Protocol):
    """One loaded model that turns token ids into token ids."""

    @property
    def state(self) -> EngineState: ...

    @property
    def model(self) -> ModelInfo:
        """Raises EngineUnavailableError until the state is READY."""

    @property
    def stats(self) -> EngineStats: ...

    @property
    def last_progress_s(self) -> float:
        """Seconds for which the engine has owed an answer, or a sign of loading; 0 while it owes none."""

    @property
    def expected_wait_s(self) -> float | None:
        """Seconds until the last of those that wait now has its first step; None if nobody knows."""

    def check_room(self, client_id: str, num_sequences: int, terms: Terms) -> None:
        """Refuses what `submit` would refuse as things stand, before anything has been spent on it. Raises the same."""

    async def submit(self, requests: Sequence[Request], terms: Terms = NO_TERMS) -> OutputStream:
        """Admits all of `requests`, which are one client's, or none.

        Raises:
            QueueFullError: the bounded queue has no room for all of them.
            TooManySequencesError: it never will have.
            EngineUnavailableError: not READY, or draining.
        """

    async def drain(self, deadline_s: float) -> None:
        """Refuses new requests, lets running ones finish for at most `deadline_s`, then fails what is left."""

    async def aclose(self) -> None:
        """Ends the engine and frees what it holds."""
