"""The seam between the API and the engine.

The API is written against `Engine`; the client of the engine process implements it, and so do the fakes of unit tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import Protocol

from dedicate_runtime.core.request import EngineStats, ModelInfo, Request, RequestId, SequenceOutput


class EngineState(Enum):
    """Life of an engine as its users see it."""

    LOADING = "loading"
    READY = "ready"
    DEAD = "dead"


class OutputStream(Protocol):
    """Outputs of requests that were submitted together, in the order in which steps produced them.

    Iteration ends after each request has had its last output. `aclose` aborts what is unfinished; it is safe to call
    twice, and must be called on every path.
    """

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
        """Seconds since the engine finished a step, loaded a part of the model, or was idle."""

    async def submit(self, requests: Sequence[Request]) -> OutputStream:
        """Admits all of `requests` or none.

        Raises:
            QueueFullError: the bounded queue has no room for all of them.
            EngineUnavailableError: not READY, or draining.
        """

    async def drain(self, deadline_s: float) -> None:
        """Refuses new requests, lets running ones finish for at most `deadline_s`, then fails what is left."""

    async def aclose(self) -> None:
        """Ends the engine and frees what it holds."""
