"""A request's body, bounded in size, in time and, all requests together, in memory, before anything parses it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from dedicate_runtime.api.errors import ApiError, unavailable

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY_BYTES = 32 * 1024 * 1024
"""What the custom resource lets through by default; over any prompt that a model could take."""
_MAX_HELD_BYTES = 8 * MAX_BODY_BYTES
"""Of all bodies that are being read or parsed. Arbitrary: what comes slowly must not add up to all memory."""
_READ_TIMEOUT_S = 60.0
"""Arbitrary: for the whole body, so that bytes which keep dribbling in hold a place no longer than others."""


class BodyReader:
    """Reads the bodies of one application."""

    def __init__(self, *, max_held_bytes: int = _MAX_HELD_BYTES, timeout_s: float = _READ_TIMEOUT_S) -> None:
        self._max_held_bytes = max_held_bytes
        self._timeout_s = timeout_s
        self._num_held_bytes = 0

    @property
    def num_held_bytes(self) -> int:
        """What all bodies that are held now have in bytes."""
        return self._num_held_bytes

    @asynccontextmanager
    async def hold(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Reads a whole body; its bytes count as held until the block ends.

        Raises:
            ApiError: 413, over the limit; 408, too slow; 415, compressed; 400, cut off; 503, others hold too much.
        """
        _check_headers(request)
        body = bytearray()
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._num_held_bytes -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                async for part in request.stream():
                    self._num_held_bytes += len(part)
                    body += part
                    self._check_size(len(body))
        except TimeoutError:
            raise self._too_slow() from None
        except ClientDisconnect:
            raise ApiError(400, "The body was cut off.") from None

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > MAX_BODY_BYTES:
            raise _too_large()
        if self._num_held_bytes > self._max_held_bytes:
            raise unavailable("The server is reading too many large bodies. Retry later.", "too_many_bodies")

    def _too_slow(self) -> ApiError:
        """Builds the answer after which the connection ends: what is left of the body would come as slowly."""
        return ApiError(408, f"The body did not arrive within {self._timeout_s:g} s.", headers={"Connection": "close"})


def _check_headers(request: Request) -> None:
    """Refuses by the headers alone what need not be read."""
    for encoding in request.headers.getlist("content-encoding"):
        if encoding.strip().lower() != "identity":
            raise ApiError(
                415, f"The content encoding {encoding} is not supported.", headers={"Accept-Encoding": "identity"}
            )
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()


def _too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
