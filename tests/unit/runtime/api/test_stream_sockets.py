"""Streams through uvicorn over real sockets: what a client sees while it waits, what one that reads nothing costs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket

import pytest
import uvicorn

from dedicate_runtime.api.sse import EventStream, StreamWatch
from dedicate_runtime.servers import bound_unread

PATIENCE_S = 10
FRAME = b"data: " + b"x" * 4096 + b"\n\n"
HIGH_WATER_BYTES = 65_536
"""What a transport buffers before it asks us to wait."""


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self):
        yield


@contextlib.asynccontextmanager
async def serving(app, *, stalled_s=None):
    """Serve an application on a socket with small buffers; gives the address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        if stalled_s is not None:
            bound_unread(listener, stalled_s)
        config = uvicorn.Config(app, http="httptools", ws="none", lifespan="off", log_config=None)
        server = QuietServer(config)
        task = asyncio.create_task(server.serve([listener]))
        yield server, listener.getsockname()
        server.should_exit = True
        async with asyncio.timeout(PATIENCE_S):
            await task


@contextlib.contextmanager
def connected(address, request):
    """A client that sends and then reads what it is told to."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(request)
        client.setblocking(False)
        yield client


async def read_until(client, part):
    data = b""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE_S):
        while part not in data:
            received = await loop.sock_recv(client, 65_536)
            assert received, data
            data += received
    return data


def post(body):
    content = json.dumps(body).encode()
    return (
        b"POST /unit/v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-unit-test\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )


async def test_status_line_comes_while_the_prompt_is_still_computed(api):
    api.script(hang_after=0)
    async with serving(api.app) as (_, address):
        with connected(address, post({"model": "unit/test", "prompt": "Hi", "stream": True})) as client:
            head = await read_until(client, b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert b"content-type: text/event-stream" in head
            assert not api.engine.closed.is_set()
        async with asyncio.timeout(PATIENCE_S):
            await api.engine.closed.wait()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("hang_after", [0, 3], ids=["before the first token", "in the middle"])
async def test_client_that_hangs_up_frees_its_sequence(api, stream, hang_after):
    api.script(hang_after=hang_after)
    async with serving(api.app) as (_, address):
        with connected(address, post({"model": "unit/test", "prompt": "Hi", "stream": stream})):
            async with asyncio.timeout(PATIENCE_S):
                await api.engine.is_hanging.wait()
        async with asyncio.timeout(PATIENCE_S):
            await api.engine.closed.wait()


class Flood:
    """An application whose stream never ends; counts what is taken from it."""

    def __init__(self, **bounds):
        self.watch = StreamWatch(**bounds)
        self.num_bytes = 0
        self.is_closed = asyncio.Event()

    async def __call__(self, scope, receive, send):
        await EventStream(self.frames(), self.close, watch=self.watch)(scope, receive, send)

    async def frames(self):
        while True:
            await asyncio.sleep(0)
            self.num_bytes += len(FRAME)
            yield FRAME

    async def close(self):
        self.is_closed.set()


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_reader_that_stops_is_bounded_in_memory_cut_and_dropped():
    """No more is made than buffers hold; then the stream is closed, and its connection with what it holds dropped."""
    flood = Flood(keep_alive_s=0.05, stalled_reader_s=0.2)
    async with serving(flood, stalled_s=0.2) as (server, address):
        with connected(address, GET) as client:
            await read_until(client, b"data: ")
            async with asyncio.timeout(PATIENCE_S):
                await flood.is_closed.wait()
            assert flood.num_bytes < HIGH_WATER_BYTES + 64 * 1024
            async with asyncio.timeout(PATIENCE_S):
                while server.server_state.connections:  # noqa: ASYNC110 - connections have no event
                    await asyncio.sleep(0.01)
            assert flood.watch.num_streams == 0


async def test_reader_that_goes_on_after_a_pause_has_lost_nothing():
    flood = Flood()
    async with serving(flood) as (_, address):
        with connected(address, GET) as client:
            data = await read_until(client, b"data: ")
            seen = -1
            while seen != flood.num_bytes:  # until nothing more is taken from it
                seen = flood.num_bytes
                await asyncio.sleep(0.02)
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(PATIENCE_S):
                while len(data) < 2 * seen:
                    data += await loop.sock_recv(client, 65_536)
        chunk = b"%x\r\n%s\r\n" % (len(FRAME), FRAME)
        body = data.partition(b"\r\n\r\n")[2]
        assert body == (chunk * (len(body) // len(chunk) + 1))[: len(body)]
        async with asyncio.timeout(PATIENCE_S):
            await flood.is_closed.wait()
