"""Limits through the whole application: what is refused, what answers say, and that every path gives back."""

from __future__ import annotations

import asyncio
import json
import re

import httpx
import pytest

from dedicate_runtime.api.limit_answers import format_duration
from dedicate_runtime.api.limits_file import parse_limits

KEY = "sk-unit-test"
SECOND = 10**9
LIMITS = "default: {requestsPerMinute: 10, tokensPerMinute: 1000, concurrentRequests: 2}"
HI = 3  # tokens of the prompt "Hi", its BOS included
HELLO = 14  # tokens of the fake engine's answer, its end included
MOST_NEW = 125  # what a context of 128 has room for beside "Hi"


class Clock:
    now = 7 * SECOND

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def limited(make_api, clock):
    return make_api(limits=LIMITS, clock=clock)


def standing(api, client="alice"):
    """What is left to the client: requests, tokens; and how many of its requests run."""
    account, now = api.limiter.account_of(client), api.limiter.clock()
    return account.requests.num_left(now), account.tokens.num_left(now), account.num_running


def rate_headers(response):
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in response.headers.items()
        if name.startswith("x-ratelimit-")
    }


def refused(response):
    assert response.status_code == 429, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (None, "rate_limit_exceeded")
    return error


class Wire:
    """An ASGI server's side of one request: the client may leave at any message."""

    def __init__(self, path="completions", **fields):
        body = {"model": "unit/test", "prompt": "Hi", **fields}
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": f"/unit/v1/{path}",
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {KEY}".encode())],
        }
        self.incoming = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
        self.gone = asyncio.Event()
        self.sent = []
        self.on_send = lambda message: None

    async def receive(self):
        if self.incoming:
            return self.incoming.pop(0)
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        self.on_send(message)

    async def run(self, app):
        async with asyncio.timeout(10):
            await app(self.scope, self.receive, self.send)


async def test_answers_say_where_the_client_stands(limited):
    whole = await limited.complete()
    assert rate_headers(whole) == {
        "limit-requests": "10",
        "limit-tokens": "1000",
        "remaining-requests": "9",
        "remaining-tokens": str(1000 - HI - HELLO),
        "reset-requests": "6s",
        "reset-tokens": "1.02s",
    }


async def test_a_stream_says_so_when_it_begins_with_all_that_it_may_use_taken(limited):
    stream = await limited.complete(stream=True)
    assert rate_headers(stream)["remaining-tokens"] == str(1000 - HI - MOST_NEW)
    assert standing(limited) == (9, 1000 - HI - HELLO, 0)


async def test_errors_and_other_routes_say_so_too_and_cost_nothing_more(limited):
    assert rate_headers(await limited.client.get("/unit/v1/models"))["remaining-requests"] == "10"
    assert (
        rate_headers(await limited.client.post("/unit/tokenize", json={"prompt": "Hi"}))["remaining-tokens"] == "1000"
    )
    assert rate_headers(await limited.client.get("/unit/v1/usage"))["remaining-requests"] == "10"
    assert rate_headers(await limited.client.get("/unit/health")) == {}
    wrong = {"Authorization": "Bearer wrong"}
    assert rate_headers(await limited.client.get("/unit/v1/models", headers=wrong)) == {}
    bad = await limited.complete(temperature=3)
    assert bad.status_code == 400
    assert rate_headers(bad)["remaining-requests"] == "9"
    assert standing(limited) == (9, 1000, 0)


async def test_what_is_not_limited_is_not_told(make_api):
    api = make_api(limits="keys: {alice: {tokensPerMinute: 500}, bob: {requestsPerMinute: 1}}")
    assert set(rate_headers(await api.complete())) == {"limit-tokens", "remaining-tokens", "reset-tokens"}
    assert rate_headers(await make_api().complete()) == {}


async def test_requests_run_out(limited, clock):
    for _ in range(10):
        assert (await limited.complete(max_tokens=1)).status_code == 200
    response = await limited.complete(max_tokens=1)
    error = refused(response)
    assert error["type"] == "requests"
    assert error["message"] == (
        "Rate limit reached for client alice on requests per min (RPM): Limit 10, Used 10, Requested 1. "
        "Please try again in 6s."
    )
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("6", "6000")
    assert rate_headers(response)["remaining-requests"] == "0"
    assert rate_headers(response)["reset-requests"] == "1m0s"
    clock.now += 6 * SECOND - 1
    refused(await limited.complete(max_tokens=1))
    clock.now += 1
    assert (await limited.complete(max_tokens=1)).status_code == 200


async def test_tokens_run_out(limited, clock):
    limited.limiter.admit("alice").reserve_tokens(875)
    response = await limited.chat("x" * 10, max_tokens=100)
    error = refused(response)
    asked = int(re.search(r"Requested (\d+)", error["message"])[1])
    assert error["type"] == "tokens"
    assert error["message"].startswith(
        f"Rate limit reached for client alice on tokens per min (TPM): Limit 1000, Used 875, Requested {asked}. "
    )
    wait_ms = int(response.headers["retry-after-ms"])
    assert wait_ms == (asked - 125) * 60
    assert int(response.headers["retry-after"]) == -(-wait_ms // 1000)
    assert error["message"].endswith(f"Please try again in {format_duration(wait_ms)}.")
    assert standing(limited) == (9, 125, 1)
    clock.now += wait_ms * 10**6 - 1
    refused(await limited.chat("x" * 10, max_tokens=100))
    clock.now += 1
    assert (await limited.chat("x" * 10, max_tokens=100)).status_code == 200


async def test_a_wait_that_is_shorter_than_a_second_is_told_as_one(make_api, clock):
    api = make_api(limits="default: {requestsPerMinute: 6000}", clock=clock)
    for _ in range(6000):
        api.limiter.admit("alice")
    response = await api.complete()
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "10")


async def test_more_than_a_minutes_worth_is_refused_for_good(make_api, clock):
    api = make_api(limits="default: {tokensPerMinute: 100, requestsPerMinute: 5}", clock=clock)
    response = await api.complete(max_tokens=90, n=2)
    error = refused(response)
    assert error["type"] == "tokens"
    assert error["message"] == (
        "Request too large for client alice on tokens per min (TPM): Limit 100, Requested 183. "
        "The prompt, max_tokens or n must be reduced."
    )
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers
    assert rate_headers(response)["remaining-requests"] == "5"
    assert (await api.complete(max_tokens=97)).status_code == 200


async def test_each_prompt_counts_once_and_each_choice_for_itself(limited):
    response = await limited.complete(prompt=["Hi", "Ho"], n=2, max_tokens=50, stream=True)
    assert rate_headers(response)["remaining-tokens"] == str(1000 - 2 * HI - 4 * 50)
    assert standing(limited) == (9, 1000 - 2 * HI - 4 * HELLO, 0)


async def test_an_echo_alone_takes_its_prompt_only(limited):
    await limited.complete(echo=True, max_tokens=0, logprobs=1)
    assert standing(limited) == (9, 1000 - HI, 0)


async def test_places_run_out_and_come_back(limited):
    limited.script(hang_after=2)
    running = [Wire(stream=True), Wire(stream=False)]
    tasks = []
    for wire in running:
        limited.engine.is_hanging.clear()
        tasks.append(asyncio.create_task(wire.run(limited.app)))
        await limited.engine.is_hanging.wait()
    response = await limited.complete()
    error = refused(response)
    assert error["type"] == "requests"
    assert error["message"] == (
        "Rate limit reached for client alice on concurrent requests: Limit 2, Used 2, Requested 1. "
        "Please try again in 1s."
    )
    assert (response.headers["retry-after"], response.headers["retry-after-ms"]) == ("1", "1000")
    assert standing(limited)[0] == 8
    for wire in running:
        wire.gone.set()
    await asyncio.gather(*tasks)
    limited.script()
    assert (await limited.complete()).status_code == 200


async def leave_in_mid_stream(api):
    api.script(hang_after=3)
    wire = Wire(stream=True)
    task = asyncio.create_task(wire.run(api.app))
    await api.engine.is_hanging.wait()
    assert standing(api)[2] == 1
    wire.gone.set()
    await task
    return HI + 3


async def leave_before_the_first_token(api):
    api.script(hang_after=0)
    wire = Wire(stream=True)
    task = asyncio.create_task(wire.run(api.app))
    await api.engine.is_hanging.wait()
    wire.gone.set()
    await task
    return HI


async def leave_while_the_whole_answer_is_made(api):
    api.script(hang_after=4)
    wire = Wire()
    task = asyncio.create_task(wire.run(api.app))
    await api.engine.is_hanging.wait()
    wire.gone.set()
    await task
    return HI + 4


async def leave_while_the_body_is_sent(api):
    wire = Wire()
    wire.incoming[0]["more_body"] = True
    wire.gone.set()
    await wire.run(api.app)
    return 0


async def leave_when_the_server_writes(api):
    """A server whose socket is gone raises when it is written to."""
    wire = Wire(stream=True)

    def fail(message):
        if message.get("body"):
            raise OSError("gone")

    wire.on_send = fail
    await wire.run(api.app)
    return HI + 1


async def be_cancelled(api):
    api.script(hang_after=2)
    task = asyncio.create_task(Wire(stream=True).run(api.app))
    await api.engine.is_hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    return HI + 2


async def fail_in_mid_stream(api):
    api.script(fail_after=5)
    assert "The step failed." in (await api.complete(stream=True)).text
    return HI + 5


async def fail_on_the_way_to_a_whole_answer(api):
    api.script(fail_after=5)
    assert (await api.complete()).status_code == 500
    return HI + 5


async def meet_an_unexpected_fault(api):
    class Broken:
        async def __aiter__(self):
            raise ZeroDivisionError
            yield

        async def abort(self, request_id): ...

        async def aclose(self): ...

    async def submit(requests, terms):
        return Broken()

    api.engine.submit = submit
    assert (await api.complete()).status_code == 500
    return HI


async def be_answered(api):
    assert (await api.complete()).status_code == 200
    return HI + HELLO


async def be_streamed(api):
    assert (await api.chat("", stream=True)).status_code == 200
    return len(api.engine.requests[0].prompt_token_ids) + HELLO


async def be_malformed(api):
    assert (await api.client.post("/unit/v1/completions", content=b"{")).status_code == 400
    return 0


async def be_too_long(api):
    assert (await api.complete("x" * 500)).status_code == 400
    return 0


@pytest.mark.parametrize(
    "path",
    [
        be_answered,
        be_streamed,
        be_malformed,
        be_too_long,
        leave_in_mid_stream,
        leave_before_the_first_token,
        leave_while_the_whole_answer_is_made,
        leave_while_the_body_is_sent,
        leave_when_the_server_writes,
        be_cancelled,
        fail_in_mid_stream,
        fail_on_the_way_to_a_whole_answer,
        meet_an_unexpected_fault,
    ],
    ids=lambda path: path.__name__,
)
async def test_every_path_frees_its_place_and_gives_back_what_was_not_used(limited, path):
    num_used = await path(limited)
    assert standing(limited) == (9, 1000 - num_used, 0)
    usage = (await limited.client.get("/unit/v1/usage")).json()
    assert (usage["requests"], usage["running_requests"], usage["total_tokens"]) == (1, 0, num_used)
    assert usage["failed_requests"] == (path not in {be_answered, be_streamed})


async def test_a_crowd_never_has_more_places_than_there_are(limited):
    """Whole answers, streams, faults and clients that leave, all at once, again and again."""
    submit, most_running = limited.engine.submit, []

    async def count_and_submit(requests, terms):
        most_running.append(limited.limiter.account_of("alice").num_running)
        return await submit(requests, terms)

    async def ask(number):
        wire = Wire(stream=number % 2 == 0, max_tokens=1 + number % 9)
        if number % 3 == 0:
            wire.on_send = lambda message: wire.gone.set()
        if number % 7 == 0:
            wire.incoming[0]["body"] = b"{"
        await wire.run(limited.app)
        return wire.sent[0]["status"]

    limited.engine.submit = count_and_submit
    limited.limiter.replace(parse_limits(b"default: {concurrentRequests: 3, tokensPerMinute: 100000}"))
    statuses = [status for _ in range(20) for status in await asyncio.gather(*map(ask, range(20)))]
    assert {200, 400, 429} <= set(statuses)
    assert max(most_running) == 3
    account = limited.limiter.account_of("alice")
    usage = (await limited.client.get("/unit/v1/usage")).json()
    assert (account.num_running, usage["running_requests"], usage["requests"]) == (0, 0, len(statuses))
    assert account.tokens.num_left(limited.limiter.clock()) == 100000 - usage["total_tokens"]


@pytest.mark.parametrize("how", ["queue full", "draining", "loading", "too many tokens"])
async def test_a_request_that_the_server_turns_away_costs_nothing(make_api, clock, how):
    api = make_api(limits=LIMITS, clock=clock, serving=how != "loading")
    if how == "queue full":
        api.script(queue_full=True)
    elif how == "draining":
        api.readiness.start_draining()
    response = await api.complete(n=100 if how == "too many tokens" else 1)
    assert response.status_code == (429 if how in {"queue full", "too many tokens"} else 503)
    assert rate_headers(response)["remaining-tokens"] == "1000"
    assert standing(api) == (10, 1000, 0)


@pytest.mark.parametrize("stream", [True, False])
async def test_the_place_is_free_before_the_last_byte_goes_out(limited, stream):
    """A client that asks again as soon as it has its answer must not meet its own former request."""
    wire = Wire(stream=stream)
    seen = []

    def look(message):
        if message["type"] == "http.response.body" and not message.get("more_body"):
            seen.append(standing(limited))

    wire.on_send = look
    await wire.run(limited.app)
    assert seen == [(9, 1000 - HI - HELLO, 0)]


async def test_too_many_requests_are_refused_before_the_body_is_read(make_api):
    api = make_api(limits="default: {requestsPerMinute: 1}")
    await api.complete()
    wire = Wire()

    async def receive():
        raise AssertionError("the body was read")

    wire.receive = receive
    await wire.run(api.app)
    assert wire.sent[0]["status"] == 429


async def test_clients_have_limits_of_their_own(make_api, keys_dir):
    (keys_dir / "bob").write_text("sk-bob")
    api = make_api(limits="default: {requestsPerMinute: 1}\nkeys: {bob: {requestsPerMinute: 2}}")
    bob = {"Authorization": "Bearer sk-bob"}
    body = {"model": "unit/test", "prompt": "Hi"}
    assert (await api.complete()).status_code == 200
    assert "for client alice" in refused(await api.complete())["message"]
    for _ in range(2):
        assert (await api.client.post("/unit/v1/completions", json=body, headers=bob)).status_code == 200
    assert "for client bob" in refused(await api.client.post("/unit/v1/completions", json=body, headers=bob))["message"]


async def test_without_keys_all_share_the_default(make_api):
    api = make_api("--auth", "none", limits="default: {requestsPerMinute: 1}")
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")
    body = {"model": "unit/test", "prompt": "Hi"}
    assert (await client.post("/unit/v1/completions", json=body)).status_code == 200
    error = refused(await client.post("/unit/v1/completions", json=body))
    assert error["message"].startswith("Rate limit reached for this endpoint on requests per min")


async def test_refusals_are_counted_by_client_and_limit(limited):
    await limited.complete(n=100)
    value = limited.metrics.registry.get_sample_value
    assert value("dedicate_rate_limited_requests_total", {"key_id": "alice", "limit": "tokens"}) == 1
    assert value("dedicate_requests_total", {"key_id": "alice", "route": "/v1/completions", "status": "429"}) == 1


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (120, "120ms"),
        (1000, "1s"),
        (1020, "1.02s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (361_500, "6m1.5s"),
    ],
)
def test_durations_are_spelled_as_openai_does(milliseconds, text):
    assert format_duration(milliseconds) == text
