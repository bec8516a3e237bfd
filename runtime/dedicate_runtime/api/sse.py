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
    from starlette.types import ASGIApp, Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
STALLED_READER_S = 300.0
"""Arbitrary: a client that takes nothing for so long is gone, whatever its socket says."""
HEAD_PAUSE_S = 0.005
"""At least, before a stream's status line. A proxy in Go (Traefik, Caddy, many a service mesh) passes the line on, and
by that closes the request's body, which its other half may be about to read once more for its end: the stream is cut
then. One in 400 was cut on a busy machine where the line came at once. Source: golang/go issue 40747."""
HEAD_WAIT_S = 0.1
"""At most, for the first token, with which the line leaves if it can: nobody uses it earlier, and a proxy that has to
wait for a CPU has more time. Arbitrary; whoever waits longer for a token should see that the request was taken."""
_DIRECT_SEND = "dedicate.direct_send"
_LOOKS = 5
"""Times that a stream is looked at within `KEEP_ALIVE_S`; arbitrary. More looks would send fewer comments too early."""

encode_json: Callable[[Any], bytes] = msgspec.json.Encoder().encode


def event(payload: Any) -> bytes:
    """Frames one JSON object."""
    return b"data: " + encode_json(payload) + b"\n\n"


class StreamWatch:
    """Looks after all open streams with one timer: none is silent for over `keep_alive_s`, none stalls for long."""

    def __init__(
        self,
        *,
        keep_alive_s: float = KEEP_ALIVE_S,
        stalled_reader_s: float = STALLED_READER_S,
        head_pause_s: float = HEAD_PAUSE_S,
        head_wait_s: float = HEAD_WAIT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.head_pause_s = head_pause_s
        self.head_wait_s = head_wait_s
        self._stalled_reader_s = stalled_reader_s
        self._interval_s = keep_alive_s / _LOOKS
        # What is not yet due at one look must still be in time at the next.
        self._patience_s = keep_alive_s - self._interval_s
        self._streams: set[EventStream] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    def add(self, stream: EventStream) -> None:
        self._streams.add(stream)
        if self._timer is None:
            self._set_timer()

    def remove(self, stream: EventStream) -> None:
        self._streams.discard(stream)

    def look(self) -> None:
        """Has silent streams comment and gives up those whose reader has stalled."""
        now = self.clock()
        for stream in list(self._streams):
            silent_s = now - stream.sent_at
            if stream.is_sending:
                if silent_s >= self._stalled_reader_s:
                    stream.give_up()
            elif silent_s >= self._patience_s:
                stream.comment()

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.look()
        if self._streams:
            self._set_timer()


class DirectSend:
    """Goes outermost around the application, and offers its streams the server's own `send`.

    Between the two stand half a dozen layers, which have to see how an answer begins and that it ends, and hand on all
    the rest: an eighth of what a token costs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[_DIRECT_SEND] = send
        await self._app(scope, receive, send)


class EventStream(Response):
    """Sends frames as they come, until they end or the client goes; then calls `close`, on every path."""

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        *,
        watch: StreamWatch,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no"})
        self._frames = frames
        self._close = close
        self._watch = watch
        self._clock = watch.clock
        self._commenting: asyncio.Future[None] | None = None
        self._first: asyncio.Future[bytes] | None = None
        self.sent_at = self._clock()
        """When bytes were last taken from us."""
        self.is_sending = True
        """Nothing may come in between; until the status line is out, too."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._writing = asyncio.ensure_future(self._write(send, scope.get(_DIRECT_SEND, send)))
        leaving = asyncio.ensure_future(wait_for_disconnect(receive))
        self._watch.add(self)
        try:
            await asyncio.wait([self._writing, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._watch.remove(self)
            tasks = [task for task in (self._writing, leaving, self._commenting, self._first) if task is not None]
            for task in tasks:
                task.cancel()
            try:
                # The engine first: where hundreds leave at once, it must not work for those whose turn is late.
                await self._close()
            finally:
                await cancel_and_wait(*tasks)
                await self._frames.aclose()
        if not self._writing.cancelled():
            self._writing.result()

    async def _write(self, send: Send, direct_send: Send) -> None:
        self._first = asyncio.ensure_future(anext(self._frames, b""))
        await asyncio.sleep(self._watch.head_pause_s)
        await asyncio.wait([self._first], timeout=self._watch.head_wait_s)
        await self._pass({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._send = direct_send
        if first := await self._first:
            await self._pass({"type": "http.response.body", "body": first, "more_body": True})
        async for frame in self._frames:
            await self._pass({"type": "http.response.body", "body": frame, "more_body": True})
        self._send = send
        await self._pass({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, message: dict[str, Any]) -> None:
        self.is_sending = True
        await self._send(message)
        self.is_sending = False
        self.sent_at = self._clock()

    def comment(self) -> None:
        """Sends a comment, unless the last one or something else is still being sent."""
        if self._commenting is None or self._commenting.done():
            self._commenting = asyncio.ensure_future(self._comment())

    async def _comment(self) -> None:
        if not self._writing.done() and not self.is_sending:
            await self._pass({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})

    def give_up(self) -> None:
        """Ends the stream without another word: nobody takes it."""
        self._writing.cancel()


async def wait_for_disconnect(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel_and_wait(*tasks: asyncio.Future[Any]) -> None:
    """Cancels what still runs and waits until all of it has ended, whatever it ends with."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
