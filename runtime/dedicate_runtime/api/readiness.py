"""Whether the API can take work, and what it says while it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dedicate_runtime.api.errors import ApiError, unavailable
from dedicate_runtime.engine.interface import EngineState

if TYPE_CHECKING:
    from dedicate_runtime.api.served_model import ServedModel
    from dedicate_runtime.engine.interface import Engine

_STALLED_S = 120.0
"""Arbitrary, far over the longest step: an engine that has work and has done none of it for so long hangs."""


class Readiness:
    """The life of one runtime: loading, then serving, then draining. Moves forward only."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._served: ServedModel | None = None
        self.is_draining = False

    def start_serving(self, served: ServedModel) -> None:
        self._served = served

    def start_draining(self) -> None:
        self.is_draining = True

    @property
    def is_started(self) -> bool:
        """Whether a first token has been computed."""
        return self._served is not None

    @property
    def is_alive(self) -> bool:
        """Whether the engine makes progress, is idle or still loads."""
        if self._engine.state is EngineState.LOADING:
            return True
        return self._engine.state is EngineState.READY and self._engine.last_progress_s < _STALLED_S

    @property
    def problem(self) -> ApiError | None:
        """Why new work is refused just now; None when it is welcome."""
        if self.is_draining:
            return unavailable("The server is shutting down. Retry, and another one will answer.", "draining")
        if self._engine.state is EngineState.DEAD:
            return unavailable("The engine has ended; the server is about to restart.", "engine_unavailable")
        if self._served is None:
            return unavailable("The model is still loading.", "loading")
        return None

    def require_ready(self) -> ServedModel:
        """Gives the model to new work.

        Raises:
            ApiError: 503, while loading, draining or dead.
        """
        problem = self.problem
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
