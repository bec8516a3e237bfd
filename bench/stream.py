"""One streamed HTTP request, recorded as cheaply as possible and taken apart afterwards.

Client and servers share the machine's cores, so the client only notes bytes and the time they came while it measures;
headers, chunks and events are parsed once the request is over.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import h11


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What came back: reads with the seconds from sending to each, and how long it took in all."""

    reads: tuple[tuple[float, bytes], ...]
    total_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A recording taken apart: the status, and each event of a stream (or the one JSON body) with its time."""

    status: int
    headers: Mapping[str, str]
    events: tuple[tuple[float, dict[str, Any]], ...]
    is_whole: bool
    """The server ended the answer in the way that HTTP and event streams prescribe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens, and the key it wants."""

    host: str
    port: int
    path: str
    api_key: str

    def encode(self, endpoint: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> bytes:
        """Gives the bytes of a request; the connection is not used again."""
        content = json.dumps(body).encode()
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"POST {self.path}{endpoint} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Authorization: Bearer {self.api_key}\r\nContent-Type: application/json\r\n"
            f"{more}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + content


async def record(
    address: Address, request: bytes, *, timeout_s: float, quit_after_bytes: int | None = None
) -> Recording:
    """Sends a request and reads until the server closes; with `quit_after_bytes` hangs up once that many have come.

    Raises:
        OSError: no connection, or it broke.
        TimeoutError: no end within `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    async with asyncio.timeout(timeout_s):
        transport, recorder = await loop.create_connection(
            lambda: _Recorder(loop, request, began, quit_after_bytes), address.host, address.port
        )
        try:
            await recorder.ended
        finally:
            transport.abort()
    return Recording(reads=tuple(recorder.reads), total_s=time.perf_counter() - began)


class _Recorder(asyncio.Protocol):
    """Notes what comes and when, and does nothing else: what a client computes is taken from the server's cores."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, request: bytes, began: float, quit_after_bytes: int | None
    ) -> None:
        self._request = request
        self._began = began
        self._num_bytes_left = quit_after_bytes
        self.reads: list[tuple[float, bytes]] = []
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast("asyncio.Transport", transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.reads.append((time.perf_counter() - self._began, data))
        if self._num_bytes_left is not None:
            self._num_bytes_left -= len(data)
            if self._num_bytes_left <= 0:
                self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(exc)

    def _end(self, error: Exception | None) -> None:
        if self.ended.done():
            return
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def parse(recording: Recording) -> Answer:
    """Takes a recording apart.

    Raises:
        h11.RemoteProtocolError: what came is no HTTP.
    """
    status, headers, is_streamed, is_whole = 0, {}, False, False
    splitter = _EventSplitter()
    body: list[bytes] = []
    events: list[tuple[float, dict[str, Any]]] = []
    for at_s, event in _http_events(recording):
        if isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode().lower(): value.decode() for name, value in event.headers}
            is_streamed = headers.get("content-type", "").startswith("text/event-stream")
        elif isinstance(event, h11.Data) and is_streamed:
            events += ((at_s, json.loads(text)) for text in splitter.feed(bytes(event.data)))
        elif isinstance(event, h11.Data):
            body.append(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            is_whole = not is_streamed or splitter.is_done or not splitter.rest
    if body and headers.get("content-type", "").startswith("application/json"):
        events.append((recording.total_s, json.loads(b"".join(body))))
    return Answer(status=status, headers=headers, events=tuple(events), is_whole=is_whole)


def _http_events(recording: Recording) -> Iterator[tuple[float, h11.Event]]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "-"), ("Connection", "close")]))
    connection.send(h11.EndOfMessage())
    for at_s, data in recording.reads:
        connection.receive_data(data)
        while isinstance(event := connection.next_event(), h11.Event):
            yield at_s, event


class _EventSplitter:
    """Server-sent events out of bytes that are cut anywhere; `[DONE]` and comments are no events."""

    def __init__(self) -> None:
        self.rest = b""
        self.is_done = False

    def feed(self, data: bytes) -> list[bytes]:
        """Adds bytes and gives the data of each event that they complete."""
        *lines, self.rest = (self.rest + data).replace(b"\r\n", b"\n").split(b"\n")
        contents = [line.removeprefix(b"data:").strip() for line in lines if line.startswith(b"data:")]
        self.is_done = self.is_done or b"[DONE]" in contents
        return [content for content in contents if content and content != b"[DONE]"]
