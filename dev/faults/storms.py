"""The storms of the project's tests and benchmarks: each spoils some requests, in one way, for as long as it lasts."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from aiohttp import web

from dev.faults.proxy import Calm, Forward, is_election, is_watch, is_write

Predicate = Callable[[web.Request], bool]


def build_status(code: int, reason: str, message: str) -> dict[str, object]:
    """Return an error as the API server words it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }


def build_error_event(code: int, reason: str, message: str) -> bytes:
    """Return an error as it stands in a watch."""
    event = {"type": "ERROR", "object": build_status(code, reason, message)}
    return json.dumps(event).encode() + b"\n"


@dataclass
class Answers(Calm):
    """Requests that match are answered by the proxy and never reach the API server."""

    status: int
    body: bytes
    matches: Predicate
    content_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    met_at: list[float] = field(default_factory=list)

    @property
    def num_met(self) -> int:
        return len(self.met_at)

    @property
    def intervals_s(self) -> list[float]:
        """The pauses between those that were met."""
        return [after - before for before, after in pairwise(self.met_at)]

    async def meet(self, request: web.Request, forward: Forward) -> web.StreamResponse:
        if not self.matches(request):
            return await forward()
        self.met_at.append(time.monotonic())
        return web.Response(status=self.status, body=self.body, content_type=self.content_type, headers=self.headers)


@dataclass
class Latency(Calm):
    """Every request waits; a watch only before it begins."""

    seconds: float
    num_met: int = 0

    async def meet(self, _request: web.Request, forward: Forward) -> web.StreamResponse:
        self.num_met += 1
        await asyncio.sleep(self.seconds)
        return await forward()


@dataclass
class Truncation(Calm):
    """Every answer is half of itself, in a well-formed message; a watch breaks off within a line."""

    num_met: int = 0

    async def meet(self, _request: web.Request, forward: Forward) -> web.StreamResponse:
        answer = await forward()
        self.num_met += 1
        if not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
            return answer
        half = answer.body[: len(answer.body) // 2]
        return web.Response(status=answer.status, body=half, content_type=answer.content_type)

    async def shape(self, chunk: bytes) -> bytes | None:
        return chunk[: len(chunk) // 2] + b"\n"


@dataclass
class SilentWatches(Calm):
    """Watches stay open and say nothing any more, until they are cut."""

    num_met: int = 0

    async def shape(self, _chunk: bytes) -> bytes | None:
        self.num_met += 1
        # Not even when the storm is over: a connection never loses what is in the middle.
        await asyncio.Event().wait()
        return None


@dataclass
class Hold(Calm):
    """The first request that matches is held back, even when its sender is gone; `release` lets it go on."""

    matches: Predicate
    num_met: int = 0

    def __post_init__(self) -> None:
        self._released = asyncio.Event()
        self._late: asyncio.Task[web.StreamResponse] | None = None

    async def meet(self, request: web.Request, forward: Forward) -> web.StreamResponse:
        if self.num_met or not self.matches(request):
            return await forward()
        self.num_met += 1
        self._late = asyncio.create_task(self._forward_late(forward))
        return await asyncio.shield(self._late)

    async def _forward_late(self, forward: Forward) -> web.StreamResponse:
        await self._released.wait()
        return await forward()

    async def release(self) -> int:
        """Forward it now; return the status of its answer."""
        self._released.set()
        assert self._late is not None, "nothing was held"
        return (await self._late).status


@dataclass
class Callback(Calm):
    """Does something at the n-th write, before it is forwarded or between its effect and its answer."""

    nth: int
    act: Callable[[], None]
    is_before: bool
    num_met: int = 0

    async def meet(self, request: web.Request, forward: Forward) -> web.StreamResponse:
        if not is_write(request) or is_election(request):
            return await forward()
        self.num_met += 1
        if self.num_met != self.nth:
            return await forward()
        loop = asyncio.get_running_loop()
        if self.is_before:
            await loop.run_in_executor(None, self.act)
            return web.Response(status=503)
        answer = await forward()
        await loop.run_in_executor(None, self.act)
        return answer


def conflicts() -> Answers:
    """409 on every write, the Lease's included."""
    status = build_status(
        409, "Conflict", "the object has been modified; please apply your changes to the latest version"
    )
    return Answers(409, json.dumps(status).encode(), is_write)


def gone() -> Answers:
    """410 on every watch, as the status of the answer."""
    status = build_status(410, "Expired", "too old resource version: 1 (2)")
    return Answers(410, json.dumps(status).encode(), is_watch)


def gone_in_stream() -> Answers:
    """410 on every watch, as an event within it."""
    return Answers(200, build_error_event(410, "Expired", "too old resource version: 1 (2)"), is_watch)


def broken_in_stream() -> Answers:
    """An internal error on every watch, as an event within it."""
    return Answers(200, build_error_event(500, "InternalError", "etcd event received with PrevKv=nil"), is_watch)


def overload(retry_after_s: int) -> Answers:
    """429 with Retry-After on everything."""
    status = build_status(429, "TooManyRequests", "the server has received too many requests")
    headers = {"Retry-After": str(retry_after_s)}
    return Answers(429, json.dumps(status).encode(), lambda _request: True, headers=headers)


def server_errors(code: int) -> Answers:
    """5xx on everything."""
    status = build_status(code, "InternalError", "etcdserver: request timed out")
    return Answers(code, json.dumps(status).encode(), lambda _request: True)


def html(code: int) -> Answers:
    """A load balancer's page on everything; with 200 it is somebody's login page."""
    page = b"<!DOCTYPE html><html><head><title>Sorry</title></head><body><h1>Sorry</h1></body></html>"
    return Answers(code, page, lambda _request: True, content_type="text/html")
