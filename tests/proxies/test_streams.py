"""Streams through real proxies, set up as our routes set them up: nothing is collected first, nothing is cut.

The upstream sends a word only when the word before has arrived at the client, so that a proxy which keeps words back
would stand still.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from dev.cluster.errors import PreconditionError
from tests.proxies import servers
from tests.proxies.upstream import Upstream

WORDS = [f"word-{index}" for index in range(20)]
# How long a client waits for a word before it counts as kept back.
KEPT_BACK_S = 10.0
# nginx gives up after 60 s of silence, Traefik reads no request for longer, Envoy ends a request after 15 s.
SILENCE_S = 75.0

TIMEOUT = servers.build_route({"parentRefs": [{"name": "public"}]})["spec"]["rules"][0]["timeouts"]["request"]
PROXIES = {
    "ingress-nginx": servers.nginx(
        servers.read_directives("IngressNGINX", "nginx.ingress.kubernetes.io", servers.INGRESS_NGINX)
    ),
    "f5-nginx": servers.nginx(servers.read_directives("NGINX", "nginx.org", servers.F5_NGINX)),
    "envoy": servers.envoy(TIMEOUT),
    "traefik": servers.traefik,
}


@contextmanager
def open_stream(url, body=None, read_s=KEPT_BACK_S):
    timeout = httpx.Timeout(30, read=read_s)
    with (
        httpx.Client(timeout=timeout, trust_env=False) as client,
        client.stream("POST", f"{url}/completions", json=body or {"stream": True}) as answer,
    ):
        yield answer


@pytest.fixture
def upstream():
    with Upstream() as running:
        yield running


@pytest.fixture
def start(upstream, tmp_path, request):
    """Start a proxy by its configuration; return the model's base URL behind it."""
    with ExitStack() as stack:

        def run(configure):
            try:
                return stack.enter_context(servers.run(configure, tmp_path / "proxy", upstream.port))
            except PreconditionError as error:
                pytest.skip(str(error))

        yield run


@pytest.mark.parametrize("name", PROXIES)
def test_each_word_arrives_before_the_next_is_sent(start, upstream, name):
    url = start(PROXIES[name])
    upstream.send(WORDS[0])
    with open_stream(url) as answer:
        assert answer.status_code == 200
        words = servers.read_words(answer)
        for index, word in enumerate(WORDS):
            assert next(words) == word
            upstream.send(WORDS[index + 1]) if index + 1 < len(WORDS) else upstream.end()
        assert list(words) == []
    assert upstream.paths == ["/chat/v1/completions"]


@pytest.mark.parametrize("name", PROXIES)
def test_long_prompts_pass(start, upstream, name):
    """nginx refuses more than 1 MiB by itself."""
    url = start(PROXIES[name])
    upstream.send("read")
    upstream.end()
    with open_stream(url, {"prompt": "x" * (8 << 20)}) as answer:
        assert answer.status_code == 200
        assert list(servers.read_words(answer)) == ["read"]
    assert upstream.num_body_bytes > 8 << 20


def test_nginx_as_it_is_refuses_long_prompts(start):
    url = start(servers.nginx([]))
    with open_stream(url, {"prompt": "x" * (2 << 20)}) as answer:
        assert answer.status_code == 413


@pytest.mark.long
@pytest.mark.parametrize("name", PROXIES)
def test_a_silence_longer_than_every_default_timeout_cuts_nothing(start, upstream, name):
    url = start(PROXIES[name])
    upstream.send("before")
    with open_stream(url, read_s=2 * SILENCE_S) as answer:
        words = servers.read_words(answer)
        assert next(words) == "before"
        time.sleep(SILENCE_S)  # the silence itself is what is tested
        upstream.send("after")
        upstream.end()
        assert list(words) == ["after"]


@pytest.mark.long
@pytest.mark.parametrize(
    "configure", [servers.nginx(["proxy_buffering off;"]), servers.envoy(None)], ids=["nginx", "envoy"]
)
def test_the_same_silence_is_too_long_for_a_proxy_as_it_is(start, upstream, configure):
    """Why timeouts are written."""
    url = start(configure)
    upstream.send("before")
    with open_stream(url, read_s=2 * SILENCE_S) as answer:
        words = servers.read_words(answer)
        assert next(words) == "before"
        assert next(words, "ended").startswith(("cut: ", "ended"))
