"""A proxy before a real API server that misbehaves on demand, as networks, load balancers and busy API servers do.

Speaks HTTP to whoever uses its kubeconfig and TLS to the API server. A *storm* decides, request by request, what goes
wrong; with none, every byte passes. Lives in a thread with an event loop of its own, so that plain code can drive it.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

import aiohttp
import yaml
from aiohttp import web

# What belongs to one connection and not to the message on it.
_HOP_HEADERS = frozenset({"connection", "content-length", "host", "transfer-encoding"})
_START_S = 10.0

Forward = Callable[[], Coroutine[Any, Any, web.StreamResponse]]
ResultT = TypeVar("ResultT")


class Storm(Protocol):
    """What goes wrong while it lasts."""

    async def meet(self, request: web.Request, forward: Forward, /) -> web.StreamResponse:
        """Answer a request, by `forward` or otherwise."""
        ...

    async def shape(self, chunk: bytes, /) -> bytes | None:
        """Return what is sent in place of a piece of a watch; None cuts the connection."""
        ...


class Calm:
    """No storm: everything passes. Storms override what they spoil."""

    async def meet(self, _request: web.Request, forward: Forward) -> web.StreamResponse:
        return await forward()

    async def shape(self, chunk: bytes) -> bytes | None:
        return chunk


class FaultProxy:
    """One proxy; `kubeconfig` is the way through it."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server = cluster["server"].rstrip("/")
        self._authority = cluster["certificate-authority-data"]
        self._storm: Storm = Calm()
        self._streams: set[web.StreamResponse] = set()
        self.num_requests = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        self._port = 0
        self._is_open = False
        self._call(self._open())
        address = f"http://127.0.0.1:{self._port}"
        config["clusters"][0]["cluster"] = {"server": address}
        self.kubeconfig = folder / "kubeconfig"
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.kubeconfig.chmod(0o600)

    def start(self, storm: Storm) -> None:
        """Let it blow; watches that are open are in it, too."""
        self._call(self._set(storm))

    def end(self) -> None:
        """Let everything pass again; what hangs goes on hanging, as it does in life."""
        self._call(self._set(Calm()))

    def cut(self) -> int:
        """Break every connection of a watch, now; return how many there were."""
        return self._call(self._cut())

    def refuse(self) -> None:
        """Close the door and every connection: whoever comes is refused."""
        self._call(self._close_door())

    def admit(self) -> None:
        """Open the door at the same address."""
        self._call(self._open_door())

    def close(self) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=_START_S)
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """Run something of a storm's own where storms run."""
        return self._call(coroutine)

    def _call(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=_START_S)

    async def _open(self) -> None:
        context = ssl.create_default_context(cadata=base64.b64decode(self._authority).decode())
        connector = aiohttp.TCPConnector(ssl=context, limit=0)
        self._client = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )
        application = web.Application(client_max_size=0)
        application.add_routes([web.route("*", "/{path:.*}", self._meet)])
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
        await self._runner.setup()
        await self._open_door()

    async def _open_door(self) -> None:
        if self._is_open:
            return
        self._is_open = True
        self._site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await self._site.start()
        self._port = self._runner.addresses[0][1]

    async def _close_door(self) -> None:
        self._is_open = False
        await self._site.stop()
        server = self._runner.server
        assert server is not None
        for connection in server.connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _close(self) -> None:
        await self._cut()
        await self._client.close()
        await self._runner.cleanup()

    async def _set(self, storm: Storm) -> None:
        self._storm = storm

    async def _cut(self) -> int:
        streams, self._streams = self._streams, set()
        for stream in streams:
            _abort(stream)
        return len(streams)

    async def _meet(self, request: web.Request) -> web.StreamResponse:
        self.num_requests += 1
        body = await request.read()

        async def forward() -> web.StreamResponse:
            return await self._forward(request, body)

        return await self._storm.meet(request, forward)

    async def _forward(self, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        url = self._server + request.path_qs
        try:
            async with self._client.request(request.method, url, data=body or None, headers=headers) as answer:
                kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP_HEADERS}
                if not is_watch(request) or answer.status != 200:
                    return web.Response(status=answer.status, headers=kept, body=await answer.read())
                return await self._stream(request, answer, kept)
        except aiohttp.ClientError:
            # As a load balancer whose backend is gone; a connection that just broke is what clients meet as well.
            return web.Response(status=503, text="<html><body>no backend</body></html>", content_type="text/html")

    async def _stream(
        self, request: web.Request, answer: aiohttp.ClientResponse, headers: dict[str, str]
    ) -> web.StreamResponse:
        stream = web.StreamResponse(status=200, headers=headers)
        await stream.prepare(request)
        self._streams.add(stream)
        try:
            async for line in _iterate_lines(answer.content):
                shaped = await self._storm.shape(line)
                if shaped is None:
                    _abort(stream)
                    return stream
                if shaped:
                    await stream.write(shaped)
        except (aiohttp.ClientError, ConnectionError):
            _abort(stream)
        finally:
            self._streams.discard(stream)
        return stream


def is_watch(request: web.Request) -> bool:
    return request.query.get("watch", "") in {"true", "1"}


def is_write(request: web.Request) -> bool:
    return request.method not in {"GET", "HEAD"}


def is_election(request: web.Request) -> bool:
    return "/leases/" in request.path


def _abort(stream: web.StreamResponse) -> None:
    request = stream._req  # noqa: SLF001 - aiohttp keeps the way to the connection to itself
    transport = None if request is None else request.transport
    if transport is not None:
        transport.abort()


async def _iterate_lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines; aiohttp's own iteration gives up on long ones."""
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if rest:
        yield rest
