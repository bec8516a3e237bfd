"""Whether the API can take work, and what it says while it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.api.errors import ApiError, unavailable
from dedicate_runtime.engine.interface import EngineState

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel
    from dedicate_runtime.engine.interface import Engine

_PATIENCE = 2.0
"""How many times the bound for a stall liveness waits: by then the engine should have been replaced, so whoever ought
to do that hangs, too."""


class Readiness:
    """The life of one runtime: loading, serving, leaving, draining. While an engine is replaced it does not serve."""

    def __init__(self, engine: Engine, *, stall_s: float) -> None:
        self._engine = engine
        self._stall_s = stall_s
        self._served: ServedModel | None = None
        self._is_leaving = False
        self.is_draining = False

    def start_serving(self, served: ServedModel) -> None:
        self._served = served

    def start_leaving(self) -> None:
        """Wants no more work, and takes what comes all the same."""
        self._is_leaving = True

    def start_draining(self) -> None:
        self._is_leaving = self.is_draining = True

    @property
    def is_started(self) -> bool:
        """Whether a first token has been computed."""
        return self._served is not None

    @property
    def is_alive(self) -> bool:
        """Whether the engine makes progress, is idle, or loads: the first time or again, both of which are bounded."""
        if self._engine.state is EngineState.READY:
            return self._engine.last_progress_s < _PATIENCE * self._stall_s
        return self._engine.state is not EngineState.DEAD

    @property
    def problem(self) -> ApiError | None:
        """Why no work should be sent here just now; None when it is welcome."""
        return self._farewell if self._is_leaving else self._obstacle

    @property
    def _farewell(self) -> ApiError:
        return unavailable("The server is shutting down. Retry, and another one will answer.", "draining")

    @property
    def _obstacle(self) -> ApiError | None:
        if self._engine.state is EngineState.DEAD:
            return unavailable("The engine has ended; the server is about to restart.", "engine_unavailable")
        if self._engine.state is EngineState.RESTARTING:
            return unavailable("The engine has stopped and is being started again.", "engine_unavailable")
        if self._served is None:
            return unavailable("The model is still loading.", "loading")
        return None

    def require_ready(self) -> ServedModel:
        """Gives the model to new work.

        Raises:
            ApiError: 503, while loading, draining or dead.
        """
        problem = self._farewell if self.is_draining else self._obstacle
        if problem is not None:
            raise problem
        return self.require_loaded()

    def require_loaded(self) -> ServedModel:
        """Gives the model to those who only ask about it.

        Raises:
            ApiError: 503, while loading.
        """
        if self._served is None:
            raise unavailable("The model is still loading.", "loading")
        return self._served
