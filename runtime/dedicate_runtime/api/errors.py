"""The OpenAI error envelope: the one form in which anything is refused."""

from __future__ import annotations

from math import ceil
from typing import Any, NoReturn

from dedicate_runtime.errors import EngineUnavailableError, QueueFullError, RequestError, TooManySequencesError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_UNAVAILABLE_RETRY_S = 15
"""Arbitrary: a small model is loaded, or a drained pod replaced, in that time."""
_MAX_MESSAGE = 1000
_MAX_PARAM = 200
"""Both in characters, arbitrary: an error may quote what a client sent, and need not send megabytes of it back."""


class ApiError(Exception):
    """What a client is told instead of an answer. `headers` go with the status line, not into a stream."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = headers or {}

    def envelope(self) -> dict[str, Any]:
        """Gives the body: all four keys, always."""
        param = None if self.param is None else _cut(self.param, _MAX_PARAM)
        message = _cut(self.message, _MAX_MESSAGE)
        return {"error": {"message": message, "type": self.kind, "param": param, "code": self.code}}


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def refuse(param: str | None, message: str, *, code: str | None = None) -> NoReturn:
    """Raises the 400 that names the parameter at fault."""
    raise ApiError(400, message, param=param, code=code)


def unavailable(message: str, code: str) -> ApiError:
    """Builds a 503 that says when to come back."""
    headers = {"Retry-After": str(_UNAVAILABLE_RETRY_S)}
    return ApiError(503, message, kind=SERVER_ERROR, code=code, headers=headers)


def failed(message: str) -> ApiError:
    """Builds the 500 of a fault that is ours."""
    return ApiError(500, message, kind=SERVER_ERROR, code="internal_error")


def to_api_error(error: RequestError) -> ApiError:
    """Turns what the engine raises into what the client is told."""
    if isinstance(error, QueueFullError):
        retry_after_s = ceil(error.retry_after_s)
        return ApiError(
            429,
            f"{error} Retry after {retry_after_s} s.",
            kind="rate_limit_error",
            code="queue_full",
            headers={"Retry-After": str(retry_after_s), "retry-after-ms": str(ceil(1000 * error.retry_after_s))},
        )
    if isinstance(error, TooManySequencesError):
        return ApiError(400, str(error), param="n")
    if isinstance(error, EngineUnavailableError):
        return unavailable(str(error) or "The engine is not available.", "engine_unavailable")
    return failed(str(error) or "The request failed.")
