"""What the routes work with, put together once by `create_app`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from starlette.requests import Request

from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.keys import KeyRing, bearer_key, unauthorized
from dedicate_runtime.api.middleware import record_of

if TYPE_CHECKING:
    from dedicate_runtime.api.readiness import Readiness
    from dedicate_runtime.api.served_model import ServedModel
    from dedicate_runtime.engine.interface import Engine
    from dedicate_runtime.metrics import Metrics

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The engine and what stands around it. `keys` is None where no key is asked for."""

    engine: Engine
    readiness: Readiness
    keys: KeyRing | None
    metrics: Metrics
    text_pool: ThreadPoolExecutor
    request_timeout_s: float
    """Most time for one request."""

    async def authenticate(self, request: Request) -> None:
        """Notes whose request this is.

        Raises:
            ApiError: 401.
        """
        if self.keys is None:
            return
        key_id = self.keys.identify(bearer_key(request.headers.raw))
        if key_id is None:
            raise unauthorized("The API key is wrong.")
        record_of(request).key_id = key_id

    async def in_pool(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs text work off the event loop: tokenising a long prompt takes tens of milliseconds."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.text_pool, lambda: function(*args, **kwargs))


def check_model(served: ServedModel, name: str | None) -> None:
    """Checks the `model` parameter.

    Raises:
        ApiError: 404, for a model that is not served here.
    """
    if name is not None and name not in served.names:
        raise ApiError(
            404,
            f"The model {name!r} is not served here. Served: {', '.join(served.names)}.",
            param="model",
            code="model_not_found",
        )
