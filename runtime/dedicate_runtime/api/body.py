"""A request's body, bounded in size and in time before anything parses it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from dedicate_runtime.api.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_BODY_BYTES = 32 * 1024 * 1024
"""What the custom resource lets through by default; over any prompt that a model could take."""
_READ_TIMEOUT_S = 60.0


async def read_body(request: Request) -> bytes:
    """Reads the whole body.

    Raises:
        ApiError: 413, over the limit; 408, too slow; 415, compressed; 400, cut off.
    """
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise ApiError(415, f"The content encoding {encoding} is not supported.")
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {_READ_TIMEOUT_S:.0f} s.") from None
    except ClientDisconnect:
        raise ApiError(400, "The body was cut off.") from None
    return bytes(body)


def _too_large() -> ApiError:
    return ApiError(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="request_too_large")
