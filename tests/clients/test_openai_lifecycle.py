"""What the official clients do, nothing being set, when a server loads, is full, or when they change their mind."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from dev.clients import NODE_CLIENTS

QUESTION = [{"role": "user", "content": "What is the capital of Japan?"}]
LONG = {"prompt": "Once upon a time", "max_tokens": 4000, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def starting(start_runtime, model_folder):
    """A runtime that listens and still loads; it will run one sequence and queue one."""
    return start_runtime(model_folder, "--max-num-seqs", "1", "--max-queued-requests", "1").wait_listening()


@pytest.fixture(scope="module")
def narrow(starting):
    """The same, loaded; tests leave it idle."""
    return starting.wait_ready()


def is_idle(runtime):
    return runtime.metric("dedicate_requests_in_progress") == runtime.metric("dedicate_num_requests_running") == 0


def refusals(runtime, path, status):
    return [
        record for record in runtime.logged("request") if record["path"].endswith(path) and record["status"] == status
    ]


async def until(runtime, condition, *, what):
    await asyncio.to_thread(runtime.wait_until, condition, deadline_s=30, what=what)


def test_clients_outwait_the_loading_model(starting, node_programs, run):
    """503 with Retry-After is tried again, in Python and in Node, until the model answers."""
    environment = {"OPENAI_BASE_URL": f"{starting.url}/v1", "OPENAI_API_KEY": starting.key}
    with ThreadPoolExecutor(1) as pool:
        node = pool.submit(run, NODE_CLIENTS.node, node_programs / "openai_patient.mjs", **environment)
        answer = starting.openai(max_retries=60).chat.completions.create(
            model=starting.model, messages=QUESTION, max_tokens=16
        )
        assert "Tokyo" in answer.choices[0].message.content
        assert "Tokyo" in node.result()
    assert len(refusals(starting, "/v1/chat/completions", 503)) >= 2


async def test_a_full_queue_is_tried_again(narrow):
    """429 with Retry-After, while one answer runs and another one waits; it gets through when they are gone."""
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key=narrow.key, timeout=120) as client:

        def ask(max_retries):
            return client.with_options(max_retries=max_retries).completions.create(model=narrow.model, **LONG)

        running = asyncio.create_task(ask(0))
        await until(narrow, lambda: narrow.metric("dedicate_num_requests_running") == 1, what="running")
        waiting = asyncio.create_task(ask(0))
        await until(narrow, lambda: narrow.metric("dedicate_num_requests_waiting") == 1, what="queueing")
        with pytest.raises(openai.RateLimitError) as raised:
            await ask(0)
        assert raised.value.code == "queue_full"
        assert 0 < int(raised.value.response.headers["retry-after"]) <= 120

        patient = asyncio.create_task(
            client.with_options(max_retries=60).chat.completions.create(
                model=narrow.model, messages=QUESTION, max_tokens=16
            )
        )
        await until(narrow, lambda: refusals(narrow, "/v1/chat/completions", 429), what="being refused")
        running.cancel()
        waiting.cancel()
        assert "Tokyo" in (await patient).choices[0].message.content
        await asyncio.gather(running, waiting, return_exceptions=True)
    await until(narrow, lambda: is_idle(narrow), what="idling")


async def test_a_closed_stream_frees_what_it_held(narrow):
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key=narrow.key, timeout=120) as client:
        stream = await client.completions.create(model=narrow.model, stream=True, **LONG)
        await anext(stream)
        assert narrow.metric("dedicate_kv_cache_usage_ratio") > 0
        await stream.close()
    await until(narrow, lambda: is_idle(narrow), what="idling")
    assert narrow.metric("dedicate_kv_cache_usage_ratio") == 0


async def test_a_cancelled_task_frees_what_it_held(narrow):
    """Whole answers too: a task that is cancelled closes its connection."""
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key=narrow.key, timeout=120) as client:
        task = asyncio.create_task(client.completions.create(model=narrow.model, **LONG))
        await until(narrow, lambda: narrow.metric("dedicate_num_requests_running") == 1, what="running")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(narrow, lambda: is_idle(narrow), what="idling")


async def test_a_timeout_of_the_client_frees_what_it_held(narrow):
    async with openai.AsyncOpenAI(base_url=f"{narrow.url}/v1", api_key=narrow.key, timeout=1, max_retries=0) as client:
        with pytest.raises(openai.APITimeoutError):
            await client.completions.create(model=narrow.model, **LONG)
        await until(narrow, lambda: is_idle(narrow), what="idling")
