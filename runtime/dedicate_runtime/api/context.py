"""What the routes work with, put together once by `create_app`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from starlette.requests import Request

from dedicate_runtime.api.body import BodyReader
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.api.keys import KeyRing, bearer_key, unauthorized
from dedicate_runtime.api.limit_answers import limit_headers
from dedicate_runtime.api.middleware import RequestRecord, record_of
from dedicate_runtime.api.schemas import WireT, parse_body

if TYPE_CHECKING:
    from dedicate_runtime.api.limits import Admission, Limiter
    from dedicate_runtime.api.readiness import Readiness
    from dedicate_runtime.api.served_model import ServedModel
    from dedicate_runtime.api.sse import StreamWatch
    from dedicate_runtime.api.usage import Totals, UsageBook
    from dedicate_runtime.engine.interface import Engine
    from dedicate_runtime.metrics import Metrics

_SMALL_BODY_BYTES = 64 * 1024
"""Parsed on the event loop: the worst of this size takes about 5 ms, a usual one a tenth of that."""
_TURNED_AWAY = frozenset({429, 503})
"""Statuses that blame neither the request nor its client."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiContext:
    """The engine and what stands around it. `keys` is None where no key is asked for, `limiter` without limits."""

    engine: Engine
    readiness: Readiness
    keys: KeyRing | None
    limiter: Limiter | None
    usage: UsageBook
    metrics: Metrics
    streams: StreamWatch
    text_pool: ThreadPoolExecutor
    request_timeout_s: float
    """Most time for one request."""
    logs_prompts: bool = False
    bodies: BodyReader = field(default_factory=BodyReader)

    async def authenticate(self, request: Request) -> None:
        """Notes whose request this is.

        Raises:
            ApiError: 401.
        """
        record = record_of(request)
        if self.keys is not None:
            key_id = self.keys.identify(bearer_key(request.headers.raw))
            if key_id is None:
                raise unauthorized("The API key is wrong.")
            record.key_id = key_id
        if self.limiter is not None:
            record.answer_headers = partial(limit_headers, self.limiter, record.key_id)

    async def admit(self, request: Request) -> None:
        """Counts a request that generates, and lets it in if its client may have one more; before its body is read.

        Raises:
            LimitExceeded: it may not.
        """
        record = record_of(request)
        record.closing.callback(_end_request, self.usage.begin_request(record.key_id), record)
        if self.limiter is not None:
            record.admission = self.limiter.admit(record.key_id)
            record.closing.callback(_end_admission, record.admission, record)

    async def read(self, request: Request, wire: type[WireT]) -> WireT:
        """Reads and parses a request's body, a large one off the event loop.

        Raises:
            ApiError: 400, 408, 413, 415 or 503, saying what is wrong with it.
        """
        async with self.bodies.hold(request) as body:
            if len(body) <= _SMALL_BODY_BYTES:
                return parse_body(body, wire)
            return await self.in_pool(parse_body, body, wire)

    async def in_pool(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs text work off the event loop: tokenising a long prompt takes tens of milliseconds."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.text_pool, lambda: function(*args, **kwargs))


def _end_request(totals: Totals, record: RequestRecord) -> None:
    totals.end_request(
        has_failed=not record.is_whole,
        num_prompt_tokens=record.num_prompt_tokens,
        num_completion_tokens=record.num_completion_tokens,
    )


def _end_admission(admission: Admission, record: RequestRecord) -> None:
    num_tokens = record.num_prompt_tokens + record.num_completion_tokens
    admission.close(num_used_tokens=num_tokens, was_turned_away=record.status in _TURNED_AWAY)


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
