"""An engine that outlives its process: what dies or hangs is replaced, with its model, while the API goes on answering.

Whoever serves drives it: `wait_ready`, then again and again `wait_lost` and `restart`, which says when enough is
enough. Nothing happens here unasked, so a drain only has to stop asking.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from dedicate_runtime.engine.client import start_engine
from dedicate_runtime.engine.interface import NO_TERMS, EngineLoss, EngineState
from dedicate_runtime.errors import EngineUnavailableError, ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import EngineStats, ModelInfo, Request
    from dedicate_runtime.engine.client import EngineClient
    from dedicate_runtime.engine.interface import EngineObserver, Terms
    from dedicate_runtime.engine.streams import GroupStream

_logger = logging.getLogger(__name__)

MAX_RESTARTS = 2
RESTART_WINDOW_S = 600.0
"""Losses over `MAX_RESTARTS` in so long a time end the runtime: what kills three engines in a row is not chance, and
the kubelet's growing pauses are better than a loop of ours. Both arbitrary. Source: docs/contract.md."""

_RELOAD_FACTOR = 4.0
"""How much longer than the first load a later one may take, and never less than a stall may; arbitrary, and generous:
the machine may be busier than it was, and ending the runtime would only load the model once more."""

_LOOK_INTERVAL_S = 1.0
"""Between two looks at whether the engine still answers."""

RESTARTING = "The engine has stopped and is being started again."


class EngineSupervisor:
    """Implements `interface.Engine` by one engine process after another. Belongs to one event loop."""

    def __init__(
        self,
        client: EngineClient,
        config: EngineConfig,
        *,
        stall_s: float,
        restart_window_s: float = RESTART_WINDOW_S,
        start: Callable[[EngineConfig], Awaitable[EngineClient]] = start_engine,
    ) -> None:
        self._client = client
        self._config = config
        self._stall_s = stall_s
        self._restart_window_s = restart_window_s
        self._start = start
        self._observer: EngineObserver | None = None
        self._has_served = False
        self._is_closed = False
        self._started_at = time.monotonic()
        self._load_s = 0.0
        self._losses: deque[float] = deque(maxlen=MAX_RESTARTS + 1)

    @property
    def state(self) -> EngineState:
        """What the present process does; its death is RESTARTING once one has served."""
        if self._is_closed:
            return EngineState.DEAD
        state = self._client.state
        if state is EngineState.READY or not self._has_served:
            return state
        return EngineState.RESTARTING

    @property
    def model(self) -> ModelInfo:
        """Raises EngineUnavailableError until the state is READY."""
        return self._client.model

    @property
    def stats(self) -> EngineStats:
        return self._client.stats

    @property
    def last_progress_s(self) -> float:
        return self._client.last_progress_s

    def tell(self, observer: EngineObserver) -> None:
        """Has `observer` told what is measured from now on, of every process."""
        self._observer = observer
        self._client.tell(observer)

    async def wait_ready(self) -> None:
        """Returns once a first token has been computed; however long the model takes to load.

        Raises:
            StartError: the engine could not start; the one that the engine process raised.
        """
        await self._client.wait_ready()
        self._load_s = self._load_s or time.monotonic() - self._started_at
        self._has_served = True

    @property
    def expected_wait_s(self) -> float | None:
        """Seconds until the last of those that wait now has its first step; None if nobody knows."""
        return self._client.expected_wait_s

    def check_room(self, client_id: str, num_sequences: int, terms: Terms) -> None:
        """Refuses what `submit` would refuse as things stand; raises the same."""
        self._client.check_room(client_id, num_sequences, terms)

    async def submit(self, requests: Sequence[Request], terms: Terms = NO_TERMS) -> GroupStream:
        """Admits all of `requests` or none; raises what `interface.Engine` says."""
        if self.state is EngineState.RESTARTING:
            raise EngineUnavailableError(RESTARTING)
        return await self._client.submit(requests, terms)

    async def wait_lost(self) -> None:
        """Returns once the engine process is dead; one that hangs is killed first. Every stream has ended then."""
        cause = EngineLoss.DIED
        while self._client.state is not EngineState.DEAD:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_INTERVAL_S, self._stall_s / 4)):
                    await self._client.wait_dead()
            silent_s = self._client.last_progress_s
            if silent_s > self._stall_s:
                _logger.error("The engine process hangs", extra={"silent_s": round(silent_s, 1)})
                cause = EngineLoss.HUNG
                self._client.kill()
        if self._observer is not None:
            self._observer.observe_loss(cause)

    async def restart(self) -> None:
        """Puts a new engine process with the same model in the place of a lost one; READY when it returns.

        Raises:
            StartError: too many were lost in a short time, the lost one cannot be ended, or the new one does not start.
        """
        lost = self._client
        await lost.aclose()
        if lost.process_id is not None and lost.exit_code is None:
            raise StartError(ExitCode.INTERNAL_ERROR, "The engine process hangs and cannot be ended.")
        end = _explain_end(lost.exit_code)
        now = time.monotonic()
        self._losses.append(now)
        if len(self._losses) > MAX_RESTARTS and now - self._losses[0] < self._restart_window_s:
            sentence = (
                f"The engine process was lost {len(self._losses)} times in {self._restart_window_s:.0f} s; {end}."
            )
            raise StartError(ExitCode.INTERNAL_ERROR, sentence)
        _logger.error("Starting the engine again", extra={"because": end})
        # From the folder, whatever it was fetched from: the tokenizer that the API holds is that folder's.
        config = dataclasses.replace(self._config, model=lost.model.folder, revision=None)
        self._client = await self._start(config)
        if self._observer is not None:
            self._client.tell(self._observer)
        await self._wait_reloaded(max(self._stall_s, _RELOAD_FACTOR * self._load_s))

    async def _wait_reloaded(self, deadline_s: float) -> None:
        try:
            async with asyncio.timeout(deadline_s):
                await self._client.wait_ready()
        except TimeoutError as error:
            sentence = f"The engine process was lost and not back after {deadline_s:.0f} s."
            raise StartError(ExitCode.INTERNAL_ERROR, sentence) from error

    async def drain(self, deadline_s: float) -> None:
        """Refuses new requests, lets running ones finish for at most `deadline_s`, then fails what is left."""
        await self._client.drain(deadline_s)

    async def aclose(self) -> None:
        """Ends the engine process and every stream; safe to call twice."""
        self._is_closed = True
        await self._client.aclose()


async def start_supervised_engine(config: EngineConfig, *, stall_s: float) -> EngineSupervisor:
    """Starts the first engine process and returns at once, in state LOADING.

    Raises:
        StartError: the process could not be started at all.
    """
    return EngineSupervisor(await start_engine(config), config, stall_s=stall_s)


def _explain_end(exit_code: int | None) -> str:
    if exit_code is None:
        return "the last one closed its connection"
    if exit_code < 0:
        return f"the last one was ended by signal {-exit_code}"
    return f"the last one ended with code {exit_code}"
