"""`GET /v1/usage`: what the key that asks has used, and nobody else's."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

STARTED_AT = 1_700_000_000
NOTHING = {
    "object": "usage",
    "key_id": "alice",
    "since": STARTED_AT,
    "requests": 0,
    "failed_requests": 0,
    "running_requests": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "limits": None,
    "remaining": None,
}


async def usage_of(api, **headers):
    response = await api.client.get("/unit/v1/usage", headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


async def test_usage_is_nothing_at_first_and_asking_costs_nothing(api):
    assert await usage_of(api) == NOTHING
    assert await usage_of(api) == NOTHING


@pytest.mark.parametrize("stream", [True, False])
async def test_usage_counts_what_answers_report(api, stream):
    reported = (await api.complete(n=2)).json()["usage"]
    await api.complete(n=2, stream=stream)
    doubled = {name: 2 * count for name, count in reported.items()}
    assert await usage_of(api) == NOTHING | {"requests": 2} | doubled


async def test_usage_counts_failures_by_what_they_used(api):
    await api.complete(temperature=-1)
    await api.complete(model="other")
    api.script(fail_after=2)
    assert (await api.complete(stream=True)).status_code == 200
    expected = {"requests": 3, "failed_requests": 3, "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    assert await usage_of(api) == NOTHING | expected


async def test_usage_shows_what_runs(api):
    api.script(hang_after=1)
    task = asyncio.create_task(api.complete())
    await api.engine.is_hanging.wait()
    assert await usage_of(api) == NOTHING | {"requests": 1, "running_requests": 1}
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert (await usage_of(api))["running_requests"] == 0


async def test_usage_is_of_the_key_that_asks(make_api, keys_dir):
    (keys_dir / "bob").write_text("sk-bob")
    api = make_api()
    await api.complete()
    assert await usage_of(api, Authorization="Bearer sk-bob") == NOTHING | {"key_id": "bob"}
    assert (await usage_of(api))["requests"] == 1


async def test_usage_needs_a_key_where_keys_are_needed(api):
    assert (await api.client.get("/unit/v1/usage", headers={"Authorization": "Bearer wrong"})).status_code == 401


async def test_usage_without_keys_is_everybodys(make_api):
    api = make_api("--auth", "none")
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")
    await api.complete()
    usage = (await client.get("/unit/v1/usage")).json()
    assert (usage["key_id"], usage["requests"], usage["completion_tokens"]) == (None, 1, 14)


async def test_usage_is_told_while_the_model_loads(make_api):
    assert await usage_of(make_api(serving=False)) == NOTHING


async def test_usage_tells_limits_and_what_is_left(make_api):
    api = make_api(limits="default: {requestsPerMinute: 10, concurrentRequests: 4}", clock=lambda: 0)
    await api.complete()
    usage = await usage_of(api)
    assert usage["limits"] == {"requests_per_minute": 10, "tokens_per_minute": None, "concurrent_requests": 4}
    assert usage["remaining"] == {"requests": 9, "tokens": None, "concurrent_requests": 4}


async def test_usage_is_documented(api):
    document = (await api.client.get("/unit/openapi.json")).json()
    answer = document["paths"]["/unit/v1/usage"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    schema = document["components"]["schemas"][answer["$ref"].rsplit("/", 1)[-1]]
    assert set(schema["properties"]) == set(NOTHING)


def test_usage_example_of_the_documents_has_the_same_fields():
    page = (Path(__file__).parents[4] / "docs" / "api.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", page.split("\n## Usage\n")[1].split("\n## ")[0], re.DOTALL)
    assert json.loads(block).keys() == NOTHING.keys()
