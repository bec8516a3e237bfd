"""How long a request may take, from its first byte to its answer's last, and what happens when that is over.

A client says so with the header `x-request-timeout`, in seconds; the server's own limit holds for those who say nothing
and for those who ask for more. The time covers all of it: body, queue, prompt and new tokens. Nothing is done for it
token by token: the route's task is cancelled, or, once a stream has begun, one timer closes the stream of tokens.
Either frees what the engine holds within a step, in the queue as well.

An answer that is late is 504. Nobody should send the request again by itself: it has had its time and would take it
again. The clients of OpenAI's family, which repeat any 5xx, leave that to `x-should-retry`.
"""

from __future__ import annotations

import asyncio
import functools
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from dedicate_runtime.api.errors import SERVER_ERROR, ApiError, refuse
from dedicate_runtime.api.middleware import record_of
from dedicate_runtime.engine.interface import Terms

if TYPE_CHECKING:
    from starlette.datastructures import Headers

TIMEOUT_HEADER = "x-request-timeout"
TIMEOUT_PATTERN = r"^(?=.*[1-9])[0-9]{1,9}(\.[0-9]{1,9})?$"
"""Plain decimals over 0: there is one spelling of a time, and neither `1e999` nor `nan` is one."""
_RETRY_HEADER = "x-stainless-retry-count"
"""What the clients of OpenAI's family number their attempts with; others are not told from new requests."""
_SCOPE_KEY = "dedicate.deadline"


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadline:
    """The end of one request's time. `expires_at` is by `clock`."""

    timeout_s: float
    expires_at: float
    clock: Callable[[], float] = time.monotonic

    @property
    def left_s(self) -> float:
        return max(self.expires_at - self.clock(), 0.0)

    def missed(self) -> ApiError:
        """Builds the 504 of an answer that is late."""
        return ApiError(
            504,
            f"The request was not answered within its {self.timeout_s:g} s.",
            kind=SERVER_ERROR,
            code="timeout",
            headers={"x-should-retry": "false"},
        )


def parse_timeout_s(headers: Headers, *, longest_s: float) -> float:
    """Reads how long the client would wait; a longer time than `longest_s` is that.

    Raises:
        ApiError: 400, for anything but one number of seconds over 0.
    """
    values = headers.getlist(TIMEOUT_HEADER)
    if not values:
        return longest_s
    text = values[0].strip()
    if len(values) > 1 or not re.fullmatch(TIMEOUT_PATTERN, text):
        refuse(TIMEOUT_HEADER, f"{TIMEOUT_HEADER} must be a number of seconds over 0, such as 30 or 2.5.")
    return min(float(text), longest_s)


def within_deadline(
    answer: Callable[[Request], Awaitable[Response]], *, longest_s: float
) -> Callable[[Request], Awaitable[Response]]:
    """Wraps a route: gives each request its deadline, and 504 in the place of an answer that is late.

    Of a stream only the beginning is waited for here; `generation` ends the rest.
    """

    @functools.wraps(answer)
    async def answer_in_time(request: Request) -> Response:
        timeout_s = parse_timeout_s(request.headers, longest_s=longest_s)
        deadline = Deadline(timeout_s=timeout_s, expires_at=record_of(request).started_at + timeout_s)
        request.scope[_SCOPE_KEY] = deadline
        timeout = asyncio.timeout(deadline.left_s)
        try:
            async with timeout:
                return await answer(request)
        except TimeoutError:
            if not timeout.expired():
                raise
            raise deadline.missed() from None

    return answer_in_time


def deadline_of(request: Request) -> Deadline:
    """Gives the deadline of the request that is being answered."""
    deadline = request.scope[_SCOPE_KEY]
    if not isinstance(deadline, Deadline):
        raise TypeError("the route has no deadline")
    return deadline


def terms_of(request: Request) -> Terms:
    """Gives what admission must know of the request's patience."""
    count = request.headers.get(_RETRY_HEADER, "0")
    return Terms(expires_at=deadline_of(request).expires_at, is_return=count.strip("0").isdigit())
