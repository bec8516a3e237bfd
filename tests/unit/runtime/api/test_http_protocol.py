"""What raw bytes bring, at a real server on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import socket
from dataclasses import dataclass, field

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from dedicate_runtime.api.http_protocol import ConnectionLimits, bounded_protocol
from dedicate_runtime.servers import run_server, share_connections

DEADLINE_S = 60
KEYS = {"message", "type", "param", "code"}
AUTHORIZATION = b"Authorization: Bearer sk-unit-test\r\n"
NEVER_S = 1000.0


class Client:
    """One connection, driven byte by byte."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def send(self, data):
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, is_head=False):
        """Read one answer: status, headers, body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert status_line.startswith("HTTP/1.1 ")
        status = int(status_line.split()[1])
        if is_head or status == 100:
            return status, headers, b""
        return status, headers, await self.body(headers)

    async def body(self, headers):
        if headers.get("transfer-encoding") != "chunked":
            return await self.reader.readexactly(int(headers["content-length"]))
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)

    async def refusal(self, status):
        """Read an answer that must be a refusal in the envelope, after which the connection ends."""
        got, headers, body = await self.answer()
        assert got == status, body
        assert headers["content-type"] == "application/json"
        assert headers["x-request-id"]
        assert headers["connection"] == "close"
        error = json.loads(body)["error"]
        assert set(error) == KEYS
        assert await self.reader.read() == b""
        return error, headers

    async def is_closed(self):
        try:
            return await self.reader.read() == b""
        except ConnectionResetError:
            return True


@dataclass
class Server:
    """A listening socket behind which uvicorn's machinery runs with our protocol."""

    port: int
    state: ServerState
    refusals: list
    clients: list = field(default_factory=list)

    async def connect(self):
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        return Client(reader, writer)


@contextlib.asynccontextmanager
async def running(app, limits):
    """Do what uvicorn.Server does, without the tenths of a second for which it sleeps."""
    loop = asyncio.get_running_loop()
    refusals = []
    protocol = bounded_protocol(limits, on_refusal=refusals.append)
    config = uvicorn.Config(
        app, http=protocol, ws="none", lifespan="off", log_config=None, access_log=False, timeout_keep_alive=NEVER_S
    )
    config.load()
    state = ServerState()
    listening = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=state, app_state={}, _loop=loop), "127.0.0.1", 0
    )
    server = Server(listening.sockets[0].getsockname()[1], state, refusals)
    try:
        yield server
    finally:
        listening.close()
        for writer in server.clients:
            writer.transport.abort()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.gather(*state.tasks, return_exceptions=True)
        await listening.wait_closed()


@pytest.fixture
async def start(api):
    """Start servers of the API with given limits."""
    async with asyncio.timeout(DEADLINE_S), contextlib.AsyncExitStack() as stack:

        async def start(app=None, **limits):
            limits = ConnectionLimits(**{"head_timeout_s": NEVER_S, "linger_s": 0.01, **limits})
            return await stack.enter_async_context(running(app or api.app, limits))

        yield start


def post(path, body, extra=b""):
    return b"POST /unit/%s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n%s\r\n%s" % (
        path,
        AUTHORIZATION,
        len(body),
        extra,
        body,
    )


COMPLETION = post(b"v1/completions", b'{"model": "unit/test", "prompt": "Hi"}')
GET = b"GET /unit/health HTTP/1.1\r\nHost: x\r\n\r\n"


class TestHeads:
    async def test_large_head_is_431(self, start):
        server = await start(max_head_bytes=2000)
        client = await server.connect()
        await client.send(b"GET /unit/health HTTP/1.1\r\nx-request-id: mine\r\nA: " + b"a" * 2000 + b"\r\n\r\n")
        error, headers = await client.refusal(431)
        assert "2000 bytes" in error["message"]
        assert headers["x-request-id"] == "mine"
        assert server.refusals == ["large_head"]

    async def test_header_without_end_is_431(self, start):
        """One that is never complete, sent in pieces: it counts all the same."""
        client = await (await start(max_head_bytes=2000)).connect()
        await client.send(b"GET /unit/health HTTP/1.1\r\nA: ")
        for _ in range(30):
            await client.send(b"a" * 100)
            await asyncio.sleep(0)
        await client.refusal(431)

    async def test_many_headers_are_431(self, start):
        client = await (await start()).connect()
        await client.send(b"GET /unit/health HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n")
        error, _ = await client.refusal(431)
        assert "100 headers" in error["message"]

    async def test_headers_up_to_the_limit_pass(self, start):
        client = await (await start(max_headers=5)).connect()
        for _ in range(2):
            await client.send(b"GET /unit/health HTTP/1.1\r\n" + b"A: b\r\n" * 5 + b"\r\n")
            assert (await client.answer())[0] == 200

    async def test_long_target_is_414(self, start):
        client = await (await start()).connect()
        await client.send(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n")
        await client.refusal(414)

    async def test_trailers_are_dropped_and_counted(self, start):
        """A key that comes behind the body is none."""
        server = await start(max_head_bytes=2000)
        chunked = b"POST /unit/v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
        client = await server.connect()
        await client.send(chunked + AUTHORIZATION + b"\r\n")
        assert (await client.answer())[0] == 401
        client = await server.connect()
        await client.send(chunked + b"A: " + b"a" * 2000 + b"\r\n\r\n")
        await client.refusal(431)


class TestSlowness:
    async def test_silent_connection_is_closed_without_a_word(self, start):
        client = await (await start(head_timeout_s=0.05)).connect()
        assert await client.is_closed()

    async def test_dribbled_head_is_408(self, start):
        """However often a byte comes: the deadline is for the whole head."""
        server = await start(head_timeout_s=0.2, max_head_bytes=10**9)
        client = await server.connect()

        async def dribble():
            await client.send(b"GET /unit/health HTTP/1.1\r\nA: ")
            while not client.writer.is_closing():
                await client.send(b"a")
                await asyncio.sleep(0)

        dribbling = asyncio.ensure_future(dribble())
        error, _ = await client.refusal(408)
        dribbling.cancel()
        await asyncio.gather(dribbling, return_exceptions=True)
        assert "0.2 s" in error["message"]
        assert server.refusals == ["slow_head"]

    async def test_later_heads_have_the_same_deadline(self, start):
        client = await (await start(head_timeout_s=0.2)).connect()
        await client.send(GET)
        assert (await client.answer())[0] == 200
        await client.send(b"GET ")
        await client.refusal(408)

    async def test_empty_lines_do_not_keep_a_connection(self, start):
        """They begin no request, so the time for the first one goes on."""
        client = await (await start(head_timeout_s=0.2)).connect()
        await client.send(b"\r\n\r\n")
        assert await client.is_closed()

    async def test_running_answers_are_not_cut(self, start, api):
        """Only heads have the deadline: an answer may take as long as it takes."""
        api.script(hang_after=1)
        server = await start(head_timeout_s=0.05)
        client = await server.connect()
        await client.send(COMPLETION)
        await api.engine.is_hanging.wait()
        silent = await server.connect()
        assert await silent.is_closed()  # the deadline of the first is over, too
        assert not api.engine.closed.is_set()
        client.writer.transport.abort()
        await api.engine.closed.wait()

    async def test_reader_that_takes_nothing_is_cut(self, start):
        gone = asyncio.Event()

        async def flood(_scope, receive, send):
            async def watch():
                while (await receive())["type"] != "http.disconnect":
                    pass
                gone.set()

            watching = asyncio.ensure_future(watch())
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while not gone.is_set():
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
                await asyncio.sleep(0)
            await watching

        client = await (await start(flood, stalled_reader_s=0.1)).connect()
        client.writer.transport.pause_reading()
        await client.send(GET)
        await gone.wait()


class TestMalformed:
    @pytest.mark.parametrize(
        "data",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
            b"nonsense\r\n\r\n",
            b"GET / HTTP/1.1\nA: b\n\n",
            b"GET / HTTP/1.1\r\nA : b\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
            b"GET http:// HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
            b"GET /\xff HTTP/1.1\r\n\r\n",
            b"POST /unit/tokenize HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST /unit/tokenize HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"POST /unit/tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /unit/tokenize HTTP/1.1\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
        ],
    )
    async def test_malformed_http_is_400(self, start, data):
        server = await start()
        client = await server.connect()
        await client.send(data)
        await client.refusal(400)
        assert server.refusals == ["malformed"]

    async def test_unknown_transfer_encoding_is_501(self, start):
        client = await (await start()).connect()
        await client.send(b"POST /unit/tokenize HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
        await client.refusal(501)

    @pytest.mark.parametrize("version", [b" HTTP/2.0", b""])
    async def test_other_versions_are_505(self, start, version):
        client = await (await start()).connect()
        await client.send(b"GET /unit/health" + version + b"\r\n\r\n")
        await client.refusal(505)

    async def test_malformed_chunk_is_400_though_the_body_is_awaited(self, start, api):
        client = await (await start()).connect()
        await client.send(
            b"POST /unit/v1/completions HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n" % AUTHORIZATION
        )
        await client.send(b"nonsense\r\n")
        await client.refusal(400)

    async def test_malformed_chunk_of_a_waiting_request_does_not_spoil_the_answer_before(self, start):
        chunked = b"POST /unit/v1/completions HTTP/1.1\r\n%sTransfer-Encoding: chunked\r\n\r\n" % AUTHORIZATION
        client = await (await start()).connect()
        await client.send(COMPLETION + GET + chunked + b"nonsense\r\n")
        assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
        await client.refusal(400)

    async def test_garbage_behind_a_request_does_not_spoil_its_answer(self, start):
        client = await (await start()).connect()
        await client.send(COMPLETION + b"nonsense\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, json.loads(body)["object"]) == (200, "text_completion")
        await client.refusal(400)

    async def test_refused_client_reads_why_while_it_sends(self, start):
        """A connection that is closed with bytes unread is reset, and the answer lost."""
        client = await (await start(linger_s=NEVER_S)).connect()
        await client.send(b"nonsense\r\n\r\n" + b"a" * 10_000_000)
        status, _, _ = await client.answer()
        assert status == 400


class TestConnections:
    async def test_one_too_many_is_503(self, start):
        server = await start(max_connections=1)
        first, second = await server.connect(), await server.connect()
        await first.send(GET)
        assert (await first.answer())[0] == 200
        await second.send(GET)
        error, headers = await second.refusal(503)
        assert error["code"] == "too_many_connections"
        assert 0 < int(headers["retry-after"]) <= 120
        assert server.refusals == ["too_many_connections"]

    async def test_one_too_many_is_served_once_another_has_ended(self, start):
        server = await start(max_connections=1)
        first, second = await server.connect(), await server.connect()
        first.writer.write_eof()
        assert await first.is_closed()
        await second.send(GET)
        assert (await second.answer())[0] == 200

    async def test_far_too_many_are_closed_at_once(self, start):
        server = await start(max_connections=8, head_timeout_s=NEVER_S)
        clients = [await server.connect() for _ in range(8 + 2)]
        last = await server.connect()
        assert await last.is_closed()
        assert server.refusals == ["too_many_connections"]
        assert len(server.state.connections) == len(clients)

    async def test_pipelined_requests_are_answered_in_turn(self, start):
        client = await (await start()).connect()
        await client.send(COMPLETION + GET + COMPLETION)
        answers = [await client.answer() for _ in range(3)]
        assert [status for status, _, _ in answers] == [200] * 3
        assert json.loads(answers[1][2]) == {"status": "ok"}

    async def test_too_many_pipelined_requests_are_refused_after_those_before(self, start):
        client = await (await start(max_pipelined=2)).connect()
        await client.send(COMPLETION + GET * 100)
        for _ in range(3):
            assert (await client.answer())[0] == 200
        error, _ = await client.refusal(400)
        assert "2 requests" in error["message"]

    async def test_upgrade_is_ignored_and_the_connection_goes_on(self, start):
        """Java's client asks for h2c with each first request, its body included."""
        h2c = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
        websocket = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZQ==\r\n"
        client = await (await start()).connect()
        for extra in (h2c, websocket):
            await client.send(post(b"tokenize", b'{"prompt": "Hi"}', extra))
            assert (await client.answer())[0] == 200
            head, _, body = post(b"tokenize", b'{"prompt": "Hi"}', extra).partition(b"\r\n\r\n")
            await client.send(head + b"\r\n\r\n" + body[:3])
            await asyncio.sleep(0)
            await client.send(body[3:] + GET)
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
            head = head.replace(b"Content-Length: 16", b"Transfer-Encoding: chunked")
            await client.send(head + b"\r\n\r\n10\r\n" + body + b"\r\n0\r\n\r\n" + GET)
            assert [(await client.answer())[0] for _ in range(2)] == [200, 200]
            await client.send(b"GET /unit/health HTTP/1.1\r\n" + extra + b"\r\n")
            assert (await client.answer())[0] == 200

    async def test_expect_continue(self, start):
        head, _, body = COMPLETION.partition(b"\r\n\r\n")
        client = await (await start()).connect()
        await client.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await client.answer())[0] == 100
        await client.send(body)
        assert (await client.answer())[0] == 200

    async def test_expect_continue_is_not_asked_of_the_unknown(self, start):
        client = await (await start()).connect()
        await client.send(
            b"POST /unit/v1/completions HTTP/1.1\r\nContent-Length: 1000000\r\nExpect: 100-continue\r\n\r\n"
        )
        assert (await client.answer())[0] == 401


class TestPaths:
    @pytest.mark.parametrize(
        ("target", "status"),
        [
            (b"http://other.example/unit/health", 200),
            (b"//other.example/unit/health", 404),
            (b"/unit/../etc/passwd", 404),
            (b"/unit/%2e%2e/%2e%2e/etc/passwd", 404),
            (b"/unit/v1/models/..%2f..%2f..%2fetc%2fpasswd", 404),
            (b"/unit/v1/models/%00", 404),
            (b"/unit/v1/models/%ff%fe", 404),
            (b"/unit/v1/models/%ed%a0%80", 404),
            (b"/%75nit/health", 200),
            (b"/unit/health?%zz=%", 200),
            (b"/unit/health;x", 404),
            (b"/UNIT/health", 404),
            (b"/unit/health/", 200),
            (b"/healthz", 404),
            (b"/metrics", 404),
        ],
    )
    async def test_paths_stay_below_the_prefix(self, start, target, status):
        client = await (await start()).connect()
        await client.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n")
        got, _, body = await client.answer()
        assert got == status, body
        if status != 200:
            assert set(json.loads(body)["error"]) == KEYS

    @pytest.mark.parametrize("host", [b"[", b"]", b"a b", b"", b"\xff", b"x:99999999", b"@/?#"])
    async def test_any_host_will_do(self, start, host):
        client = await (await start()).connect()
        for path, status in ((b"unit/health", 200), (b"nowhere", 404)):
            await client.send(b"GET /" + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n\r\n")
            assert (await client.answer())[0] == status

    @pytest.mark.parametrize("method", [b"OPTIONS", b"PUT", b"DELETE", b"PATCH", b"TRACE", b"PROPFIND"])
    async def test_other_methods_are_405(self, start, method):
        client = await (await start()).connect()
        for path in (b"v1/chat/completions", b"v1/completions", b"v1/models", b"tokenize", b"health"):
            await client.send(method + b" /unit/" + path + b" HTTP/1.1\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, set(json.loads(body)["error"])) == (405, KEYS)
            assert headers["allow"]

    async def test_head_of_a_post_is_405_without_a_body(self, start):
        client = await (await start()).connect()
        await client.send(b"HEAD /unit/v1/completions HTTP/1.1\r\n\r\n")
        assert (await client.answer(is_head=True))[0] == 405
        await client.send(GET)
        assert (await client.answer())[0] == 200

    async def test_options_of_everything_is_refused(self, start):
        client = await (await start()).connect()
        await client.send(b"OPTIONS * HTTP/1.1\r\n\r\n")
        status, _, body = await client.answer()
        assert (status, set(json.loads(body)["error"])) == (404, KEYS)


NO_DIGIT = st.integers(0, 255).filter(lambda byte: not chr(byte).isdigit())
"""A length that grows would make the server wait for a body that never comes."""
EDITS = st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["put", "insert", "delete"]), NO_DIGIT), max_size=4)


def edit(data, edits):
    edited = bytearray(data)
    for where, how, byte in edits:
        place = where % len(edited)
        if how == "put":
            edited[place] = byte
        elif how == "insert":
            edited.insert(place, byte)
        else:
            del edited[place]
    return bytes(edited)


class TestFuzz:
    @settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        request=st.sampled_from([COMPLETION, GET, post(b"tokenize", b'{"prompt": "Hi"}', b"Expect: 100-continue\r\n")]),
        edits=EDITS,
        noise=st.binary(max_size=20),
    )
    async def test_no_bytes_bring_a_500_or_silence(self, start, request, edits, noise):
        """Each is answered, in the envelope unless it was fine after all; what may be missing of a body follows."""
        client = await (await start(head_timeout_s=0.2)).connect()
        await client.send(edit(request, edits) + noise + b"\r\n\r\n" + b"x" * 100)
        status = 100
        while status == 100:
            status, headers, body = await client.answer()
        assert status in {200, 400, 401, 404, 405, 408, 415, 431, 501, 505}, body
        assert headers["x-request-id"]
        if status != 200:
            assert set(json.loads(body)["error"]) == KEYS
        client.writer.transport.abort()


class TestServing:
    """The servers that the runtime starts are made of this protocol."""

    @pytest.mark.parametrize("which", ["public", "probing"])
    async def test_both_ports_refuse_in_the_envelope(self, api, which):
        limits = dict(zip(("public", "probing"), share_connections(), strict=True))
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        async with asyncio.timeout(DEADLINE_S), run_server(api.app, listener, limits[which], api.metrics):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            client = Client(reader, writer)
            await client.send(b"nonsense\r\n\r\n")
            await client.refusal(400)
            writer.close()
        refused = api.metrics.registry.get_sample_value("dedicate_refused_connections_total", {"reason": "malformed"})
        assert refused == 1

    def test_connections_fit_the_open_files(self, monkeypatch):
        """Of few, some stay for what is no connection; of many, no more than needed are asked for."""
        asked = []
        monkeypatch.setattr(resource, "setrlimit", lambda _kind, limits: asked.append(limits))
        for soft, hard in ((256, 1024), (1024, 2**20), (256, resource.RLIM_INFINITY)):
            monkeypatch.setattr(resource, "getrlimit", lambda _kind, limits=(soft, hard): limits)
            public, probing = share_connections()
            (allowed, kept), *_ = asked[-1:]
            assert kept == hard
            assert public.num_files + probing.num_files < allowed
            assert public.max_connections > 300
        assert public.max_connections == ConnectionLimits().max_connections
