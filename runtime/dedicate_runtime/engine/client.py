"""The API process's half of the engine: starts the engine process and speaks to it. Never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.core.config import EngineConfig
    from dedicate_runtime.core.request import EngineStats, ModelInfo, Request
    from dedicate_runtime.engine.interface import EngineState, OutputStream


class EngineClient:
    """Implements `interface.Engine` over a local socket to the engine process."""

    async def wait_ready(self) -> None:
        """Returns once a first token has been computed.

        Raises:
            StartError: the engine could not start; the one that the engine process raised.
        """
        raise NotImplementedError

    @property
    def state(self) -> EngineState:
        raise NotImplementedError

    @property
    def model(self) -> ModelInfo:
        """Raises EngineUnavailableError until the state is READY."""
        raise NotImplementedError

    @property
    def stats(self) -> EngineStats:
        raise NotImplementedError

    @property
    def last_progress_s(self) -> float:
        raise NotImplementedError

    async def submit(self, requests: Sequence[Request]) -> OutputStream:
        raise NotImplementedError

    async def drain(self, deadline_s: float) -> None:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError


async def start_engine(config: EngineConfig) -> EngineClient:
    """Starts the engine process and returns at once, in state LOADING; `wait_ready` tells how it went.

    Raises:
        StartError: the process could not be started at all.
    """
    raise NotImplementedError
