"""Many streams from one process, as cheaply as Python can: bytes, words and events are counted, nothing is parsed.

A few streams are recorded, to be taken apart afterwards. Times are those of `time.monotonic`, which is one clock for
all processes of a machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from bench.stream import Recording

_EVENT = b"data: "
_NAP_S = 0.001
"""The client sleeps so long between two looks at its sockets. If it slept in the look, each token would have to wake
it, an interrupt from the server's core to another: on a virtual machine a fourth of all that a token costs."""


@dataclass(slots=True)
class Counts:
    """What has come to all streams of a crowd so far."""

    num_bytes: int = 0
    num_events: int = 0
    num_spaces: int = 0
    num_closed: int = 0

    @property
    def num_tokens(self) -> int:
        """Words, each of which the stand-in begins with a space; an event has one space of its own.

        Headers have some too: only differences mean something.
        """
        return self.num_spaces - self.num_events


@dataclass(slots=True, eq=False)
class CrowdStream(asyncio.Protocol):
    """One request and what comes back."""

    request: bytes
    counts: Counts
    is_recorded: bool = False
    sent_at: float = 0.0
    first_byte_at: float | None = None
    first_event_at: float | None = None
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.sent_at = time.monotonic()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.first_event_at is None:
            self._note_first(data)
        counts = self.counts
        counts.num_bytes += len(data)
        counts.num_events += data.count(_EVENT)
        counts.num_spaces += data.count(b" ")
        if self.is_recorded:
            self.reads.append((time.monotonic() - self.sent_at, data))

    def _note_first(self, data: bytes) -> None:
        now = time.monotonic()
        if self.first_byte_at is None:
            self.first_byte_at = now
        if _EVENT in data:
            self.first_event_at = now

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.counts.num_closed += 1

    def hang_up(self) -> None:
        """Closes the connection, whatever is still to come."""
        if self.transport is not None:
            self.transport.abort()

    @property
    def recording(self) -> Recording:
        return Recording(reads=tuple(self.reads), total_s=self.reads[-1][0] if self.reads else 0.0)


@dataclass(slots=True)
class Crowd:
    """Streams that were opened together."""

    streams: list[CrowdStream]
    counts: Counts
    is_closed: bool = False

    @classmethod
    async def open(cls, host: str, port: int, requests: Sequence[bytes], *, num_recorded: int = 0) -> Crowd:
        """Connects and sends all of `requests` at once; returns when the last is sent."""
        counts = Counts()
        every = max(1, len(requests) // num_recorded) if num_recorded else len(requests) + 1
        streams = [
            CrowdStream(request, counts, is_recorded=index % every == every - 1)
            for index, request in enumerate(requests)
        ]
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.create_connection(lambda one=one: one, host, port) for one in streams))  # type: ignore[misc]
        crowd = cls(streams, counts)
        crowd._nap()
        return crowd

    def _nap(self) -> None:
        if not self.is_closed:
            time.sleep(_NAP_S)
            asyncio.get_running_loop().call_soon(self._nap)

    async def wait_events(self, timeout_s: float) -> None:
        """Waits until each stream has had an event.

        Raises:
            TimeoutError: not all have.
        """
        async with asyncio.timeout(timeout_s):
            while any(stream.first_event_at is None for stream in self.streams):  # noqa: ASYNC110 - it must cost nothing
                await asyncio.sleep(0.01)

    def close(self) -> None:
        """Hangs up on all that is open."""
        self.is_closed = True
        for stream in self.streams:
            stream.hang_up()
