"""A request's time is over when it says so: in the body, in the queue, in the middle of an answer."""

from __future__ import annotations

import asyncio
import json
import threading

import pytest
from starlette.datastructures import Headers

from dedicate_runtime.api.deadline import parse_timeout_s
from dedicate_runtime.api.errors import ApiError
from dedicate_runtime.core.batch import FinishedStep, RowResult
from dedicate_runtime.core.config import DeviceChoice, DtypeChoice, EngineConfig
from dedicate_runtime.engine.engine import Engine
from dedicate_runtime.engine.inprocess import start_engine_in_thread
from dedicate_runtime.engine.starts import WatchedRunner
from dedicate_runtime.errors import QueueFullError, RefusalReason, TooManySequencesError
from dedicate_runtime.scheduler.block_manager import BlockManager
from dedicate_runtime.scheduler.limits import SchedulerLimits
from dedicate_runtime.scheduler.scheduler import Scheduler

SHORT = {"x-request-timeout": "1"}
"""Long enough to reach the engine on a busy machine."""
PATIENCE_S = 20
PATHS = ("/unit/v1/completions", "/unit/v1/chat/completions")
TIMED_OUT = {
    "message": "The request was not answered within its 1 s.",
    "type": "server_error",
    "param": None,
    "code": "timeout",
}


async def post(api, headers, path="/unit/v1/completions", **fields):
    body = {"model": "unit/test", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], **fields}
    async with asyncio.timeout(PATIENCE_S):
        return await api.client.post(path, json=body, headers=headers)


@pytest.mark.parametrize(("text", "seconds"), [("30", 30.0), ("2.5", 2.5), (" 0.001 ", 0.001), ("7200", 3600.0)])
def test_timeout_is_in_seconds_and_bounded_by_the_servers_own(text, seconds):
    assert parse_timeout_s(Headers({"x-request-timeout": text}), longest_s=3600.0) == seconds


def test_timeout_is_the_servers_own_if_the_client_says_nothing():
    assert parse_timeout_s(Headers({}), longest_s=3600.0) == 3600.0


@pytest.mark.parametrize(
    "text",
    ["", "0", "0.0", "-1", "+1", "nan", "inf", "1e3", "1e999", "30s", "1500ms", "1,5", ".5", "1_0", "1" * 10, "\u0661"],
)
def test_timeout_that_is_no_number_over_0_is_refused(text):
    headers = Headers(raw=[(b"x-request-timeout", text.encode())])
    with pytest.raises(ApiError, match="number of seconds over 0") as caught:
        parse_timeout_s(headers, longest_s=3600.0)
    assert (caught.value.status, caught.value.param) == (400, "x-request-timeout")


def test_two_timeouts_are_refused():
    headers = Headers(raw=[(b"x-request-timeout", b"1"), (b"x-request-timeout", b"2")])
    with pytest.raises(ApiError):
        parse_timeout_s(headers, longest_s=3600.0)


async def test_malformed_header_is_400_naming_it(api):
    response = await post(api, {"x-request-timeout": "soon"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "x-request-timeout"
    assert api.engine.requests == []


async def post_late(make_api, **fields):
    """Ask both endpoints of engines that hang before the first token and after two; each takes a second, so at once."""
    apis = [(make_api(), path, hang_after) for path in PATHS for hang_after in (0, 2)]
    for api, _, hang_after in apis:
        api.script(hang_after=hang_after)
    responses = await asyncio.gather(*(post(api, SHORT, path, **fields) for api, path, _ in apis))
    assert all(api.engine.streams[0].is_closed for api, _, _ in apis)
    return responses


async def test_late_answer_is_504_and_frees_what_it_held(make_api):
    for response in await post_late(make_api, n=2):
        assert response.status_code == 504
        assert response.json() == {"error": TIMED_OUT}
        assert response.headers["x-should-retry"] == "false"


async def test_late_stream_ends_with_an_error_event_and_done(make_api):
    for response in await post_late(make_api, stream=True):
        assert response.status_code == 200
        *_, error, done, rest = response.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert json.loads(error.removeprefix("data: ")) == {"error": TIMED_OUT}


async def test_servers_own_limit_holds_without_a_header(make_api):
    api = make_api("--request-timeout-seconds", "1")
    api.script(hang_after=1)
    response = await post(api, {})
    assert response.status_code == 504
    assert "within its 1 s" in response.json()["error"]["message"]


async def test_answer_in_time_is_not_touched(api):
    response = await post(api, {"x-request-timeout": "60"}, stream=True)
    assert response.text.endswith("data: [DONE]\n\n")
    assert "error" not in response.text
    assert (await post(api, {"x-request-timeout": "60"})).status_code == 200


def scope_of(path="/unit/v1/completions", **headers):
    given = {"authorization": "Bearer sk-unit-test", **headers}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }


class Client:
    """The ASGI server's side of one request, whose body and reader are as slow as a test wants."""

    def __init__(self, body=None):
        self.messages = [] if body is None else [{"type": "http.request", "body": json.dumps(body).encode()}]
        self.sent = []
        self.leaves = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_read.set()

    async def receive(self):
        if self.messages:
            return self.messages.pop()
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)
        if message["type"] == "http.response.body":
            await self.may_read.wait()

    async def ask(self, api, **headers):
        async with asyncio.timeout(PATIENCE_S):
            await api.app(scope_of(**headers), self.receive, self.send)


async def test_body_that_does_not_arrive_in_time_is_504(api):
    client = Client()
    await client.ask(api, **{"x-request-timeout": "0.01"})
    assert client.sent[0]["status"] == 504


async def test_reader_that_stands_still_does_not_keep_its_sequences_beyond_the_deadline(api):
    client = Client({"model": "unit/test", "prompt": "Hi", "stream": True})
    client.may_read.clear()
    asking = asyncio.create_task(client.ask(api, **SHORT))
    async with asyncio.timeout(PATIENCE_S):
        await api.engine.closed.wait()
    assert not asking.done()
    client.may_read.set()
    await asking
    assert b'"code":"timeout"' in client.sent[-2]["body"]


async def test_admission_knows_client_choices_deadline_and_whether_this_is_a_return(api):
    await post(api, {"x-request-timeout": "60"}, prompt=["a", "b"], n=3)
    client_id, num_sequences, terms = api.engine.knocks[-1]
    assert (client_id, num_sequences, terms.is_return) == ("alice", 6, False)
    assert {request.client_id for request in api.engine.requests} == {"alice"}
    await post(api, {"x-stainless-retry-count": "1"}, "/unit/v1/chat/completions", n=2)
    client_id, num_sequences, terms = api.engine.knocks[-1]
    assert (client_id, num_sequences, terms.is_return) == ("alice", 2, True)


async def test_full_queue_is_told_before_a_prompt_is_looked_at(api):
    api.engine.refusal = QueueFullError("No room.", reason=RefusalReason.QUEUE_TIME, retry_after_s=6.2)
    response = await api.complete(["x" * 5000])  # too long for the context, which nobody has noticed yet
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    error = response.json()["error"]
    assert (error["code"], error["type"]) == ("queue_full", "rate_limit_error")
    assert error["message"] == "No room. Retry after 7 s."


async def test_request_that_never_fits_the_queue_is_400(api):
    api.engine.refusal = TooManySequencesError("At most 5 sequences in one request.")
    response = await api.complete(n=6)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "n"


class GatedRunner:
    """Computes a step for each pass that it is given."""

    max_steps_ahead = 0

    def __init__(self):
        self.passes = threading.Semaphore(0)

    def launch(self, batch):
        assert self.passes.acquire(timeout=PATIENCE_S)
        return FinishedStep([RowResult(token_id=65 if row.is_sampled else None) for row in batch.rows])


@pytest.fixture
def runner():
    return GatedRunner()


class Counted:
    """An engine that counts what was submitted to it."""

    def __init__(self, engine):
        self.engine = engine
        self.num_submitted = 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    async def submit(self, requests, terms):
        stream = await self.engine.submit(requests, terms)
        self.num_submitted += 1
        return stream


@pytest.fixture
async def live(make_api, runner):
    """The application over a real client and engine that runs one sequence at a time, but for the model."""
    config = EngineConfig(
        model="/models/none",
        device=DeviceChoice.CPU,
        dtype=DtypeChoice.AUTO,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        max_queued_requests=4,
    )
    model = make_api().engine.model

    def build(config, starts):
        limits = SchedulerLimits(
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_sequences=config.max_sequences,
            max_model_len=model.max_model_len,
        )
        scheduler = Scheduler(limits, BlockManager(num_blocks=16, block_size=16))
        return Engine(scheduler, WatchedRunner(runner, starts), vocab_size=model.vocab_size), model

    client = await start_engine_in_thread(config, build)
    await client.wait_ready()
    yield make_api(make_engine=lambda *_: Counted(client))
    for _ in range(100):
        runner.passes.release()
    await client.aclose()


async def wait_for(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - gauges have no event
            await asyncio.sleep(0.001)


async def step_until(live, runner, condition):
    """Let steps through one by one until the condition holds, and give how many it took."""
    num_steps = live.engine.stats.num_steps
    while not condition():
        seen = live.engine.stats
        runner.passes.release()
        # Who answered its last request steps no more, so the condition itself is waited for, too.
        await wait_for(lambda seen=seen: live.engine.stats is not seen or condition())
    return live.engine.stats.num_steps - num_steps


LONG = {"max_tokens": 60, "ignore_eos": True}
MAX_STEPS = 4
"""The step that is running when the abort is sent, the one that may begin before it arrives, and two for the thread
that hands it on, which a busy machine may let wait. Far from the sixty that the sequence would take."""


async def test_running_sequence_is_free_a_step_after_its_deadline(live, runner):
    response = await post(live, SHORT, stream=True, **LONG)
    assert '"code":"timeout"' in response.text
    assert await step_until(live, runner, lambda: live.engine.stats.num_free_blocks == 16) <= MAX_STEPS


async def run_one(live, runner):
    """A request that takes the only place."""
    running = asyncio.create_task(post(live, {}, **LONG))
    await wait_for(lambda: live.engine.num_submitted == 1)
    await step_until(live, runner, lambda: live.engine.stats.num_running == 1)
    return running


@pytest.mark.parametrize("stream", [True, False])
async def test_waiting_sequence_leaves_the_queue_at_its_deadline(live, runner, stream):
    running = await run_one(live, runner)
    response = await post(live, SHORT, stream=stream, **LONG)
    assert '"code":"timeout"' in response.text
    assert await step_until(live, runner, lambda: live.engine.stats.num_waiting == 0) <= MAX_STEPS
    await step_until(live, runner, running.done)
    assert running.result().status_code == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_leaves_while_it_waits_leaves_the_queue_at_once(live, runner, stream):
    running = await run_one(live, runner)
    client = Client({"model": "unit/test", "prompt": "Hi", "stream": stream, **LONG})
    asking = asyncio.create_task(client.ask(live))
    await wait_for(lambda: live.engine.num_submitted == 2)
    await step_until(live, runner, lambda: live.engine.stats.num_waiting == 1)
    client.leaves.set()
    await asking
    assert await step_until(live, runner, lambda: live.engine.stats.num_waiting == 0) <= MAX_STEPS
    await step_until(live, runner, running.done)
    assert running.result().status_code == 200
