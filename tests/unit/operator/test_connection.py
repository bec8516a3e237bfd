"""HTTP against a server of its own: who we say that we are, lines of any length, silence."""

from __future__ import annotations

import asyncio

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from lightkube.config.kubeconfig import KubeConfig

from dedicate_operator import connection as module
from dedicate_operator.connection import Answer, Connection
from dedicate_operator.errors import ClusterError


def configuration(server, **user):
    config = {
        "clusters": [{"name": "test", "cluster": {"server": str(server)}}],
        "users": [{"name": "test", "user": user}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "current-context": "test",
    }
    return KubeConfig.from_dict(config).get()


@pytest.fixture
async def serve():
    """Start a server whose every answer is the handler's; return a connection to it."""
    started = []

    async def start(handler, **user):
        application = web.Application()
        application.add_routes([web.route("*", "/{path:.*}", handler)])
        server = TestServer(application)
        await server.start_server()
        made = Connection(configuration(server.make_url("/"), **user), unacknowledged_s=5)
        started.append((made, server))
        return made

    yield start
    for made, server in started:
        await made.close()
        await server.close()


def take_token(seen, valid):
    async def answer(request):
        seen.append(request.headers.get("Authorization"))
        return web.json_response({}, status=200 if seen[-1] == f"Bearer {valid}" else 401)

    return answer


async def test_token_is_sent(serve):
    seen = []
    made = await serve(take_token(seen, "mine"), token="mine")
    assert [(await made.request("GET", "/", {})).status for _ in range(2)] == [200, 200]
    assert seen == ["Bearer mine"] * 2


async def test_token_that_is_refused_for_good_is_sent_once(serve):
    seen = []
    made = await serve(take_token(seen, "another"), token="mine")
    assert (await made.request("GET", "/", {})).status == 401
    assert seen == ["Bearer mine"]


async def test_token_that_was_renewed_is_read_again(serve, tmp_path):
    seen, file = [], tmp_path / "token"
    file.write_text("old\n")
    made = await serve(take_token(seen, "new"), tokenFile=str(file))
    file.write_text("old\n")
    assert (await made.request("GET", "/", {})).status == 401
    file.write_text("new\n")
    assert (await made.request("GET", "/", {})).status == 200
    assert (await made.request("GET", "/", {})).status == 200
    assert seen == ["Bearer old", "Bearer old", "Bearer new", "Bearer new"]


async def test_stream_begins_with_what_was_answered_and_has_lines_of_any_length(serve):
    long = b"x" * 500_000

    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first\n" + long)
        await response.write(long + b"\n\nlast")
        return response

    made = await serve(answer)
    head, *lines = [item async for item in made.stream("/", {})]
    assert isinstance(head, Answer)
    assert head.status == 200
    assert lines == [b"first", long + long, b"last"]


async def test_stream_that_is_refused_gives_the_answer(serve):
    async def answer(request):
        return web.json_response({"code": 410}, status=410)

    made = await serve(answer)
    (item,) = [item async for item in made.stream("/", {})]
    assert (item.status, item.content) == (410, b'{"code": 410}')


async def test_silent_stream_ends(serve, monkeypatch):
    async def answer(request):
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"first\n")
        await asyncio.Event().wait()

    made = await serve(answer)
    patience = module.aiohttp.ClientTimeout(total=None, sock_read=0.1)
    monkeypatch.setattr(module, "_STREAM_TIMEOUT", patience)
    assert [item async for item in made.stream("/", {})][1:] == [b"first"]


async def test_server_that_is_not_there_is_a_cluster_error(unused_tcp_port):
    made = Connection(configuration(f"http://127.0.0.1:{unused_tcp_port}"), unacknowledged_s=5)
    with pytest.raises(ClusterError) as caught:
        await made.request("GET", "/", {})
    assert caught.value.is_retryable
    await made.close()
