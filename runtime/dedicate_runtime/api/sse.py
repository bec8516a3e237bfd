"""Server-sent events as bytes, and the response that sends them.

Lines end in LF, one space follows the colon, `[DONE]` ends the stream, and comments keep proxies from cutting a silent
one. Source: https://html.spec.whatwg.org/multipage/server-sent-events.html and docs/api.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
_STALLED_READER_S = 300.0
"""Arbitrary: a client that takes nothing for so long is gone, whatever its socket says."""

encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    """Frames one JSON object."""
    return b"data: " + encode_json(payload) + b"\n\n"


class EventStream(Response):
    """Sends frames as they come, until they end or the client goes; then calls `close`, on every path."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._frames = frames
        self._close = close
        self._keep_alive_s = keep_alive_s
        self._sent_at = time.monotonic()
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        writer = asyncio.ensure_future(self._write(send))
        watchers = [
            asyncio.ensure_future(wait_for_disconnect(receive)),
            asyncio.ensure_future(self._keep_alive(send)),
        ]
        try:
            await asyncio.wait([writer, *watchers], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_and_wait(writer, *watchers)
            await self._frames.aclose()
            await self._close()
        if not writer.cancelled():
            writer.result()

    async def _write(self, send: Send) -> None:
        await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for frame in self._frames:
            await self._send(send, {"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, message: dict[str, Any]) -> None:
        self._is_sending = True
        await send(message)
        self._is_sending = False
        self._sent_at = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        """Comments when nothing was sent for a while; returns, which ends the stream, when the reader has stalled."""
        while True:
            silent_s = time.monotonic() - self._sent_at
            if self._is_sending:
                if silent_s >= _STALLED_READER_S:
                    return
                await asyncio.sleep(self._keep_alive_s)
            elif silent_s >= self._keep_alive_s:
                await self._send(send, {"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
            else:
                await asyncio.sleep(self._keep_alive_s - silent_s)


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what still runs and waits until all of it has ended, whatever it ends with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
