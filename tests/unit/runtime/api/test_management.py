"""Probes, metrics and the access log."""

from __future__ import annotations

import json
import logging

import httpx
import pytest

from dedicate_runtime.api.management import create_management_app
from dedicate_runtime.engine.interface import EngineState
from dedicate_runtime.logs import JsonFormatter

STALL_S = 60.0
"""That of the `api` fixture."""


async def get(api, path):
    app = create_management_app(api.readiness, api.metrics.registry)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://unit.test") as client:
        return await client.get(path)


async def statuses(api):
    return [(await get(api, path)).status_code for path in ("/healthz", "/startupz", "/readyz")]


async def test_probes_while_loading(make_api):
    api = make_api(serving=False)
    api.engine.state = EngineState.LOADING
    api.engine.last_progress_s = 10_000.0
    assert await statuses(api) == [200, 503, 503]


async def test_probes_while_serving(api):
    assert await statuses(api) == [200, 200, 200]


async def test_probes_while_draining(api):
    api.readiness.start_draining()
    assert await statuses(api) == [200, 200, 503]


async def test_who_leaves_is_not_ready_and_answers_all_the_same(api):
    api.readiness.start_leaving()
    assert await statuses(api) == [200, 200, 503]
    assert (await api.chat()).status_code == 200
    api.readiness.start_draining()
    refused = await api.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")


async def test_probes_of_a_dead_engine(api):
    await api.engine.aclose()
    assert await statuses(api) == [503, 200, 503]


async def test_probes_while_a_lost_engine_is_replaced(api):
    api.engine.state = EngineState.RESTARTING
    api.engine.last_progress_s = 10_000.0
    assert await statuses(api) == [200, 200, 503]
    refused = await api.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
    assert "retry-after" in refused.headers


async def test_liveness_waits_for_the_engine_to_be_replaced_but_not_for_ever(api):
    api.engine.last_progress_s = 1.5 * STALL_S
    assert (await get(api, "/healthz")).status_code == 200
    api.engine.last_progress_s = 2 * STALL_S
    assert (await get(api, "/healthz")).status_code == 503


async def test_metrics(api):
    api.metrics.watch_engine(lambda: api.engine.stats)
    await api.chat()
    await api.complete(stream=True)
    await api.client.get("/nowhere")
    response = await get(api, "/metrics")
    assert response.status_code == 200
    text = response.text
    for line in (
        'dedicate_requests_total{key_id="alice",route="/v1/chat/completions",status="200"} 1.0',
        'dedicate_requests_total{key_id="",route="unmatched",status="404"} 1.0',
        'dedicate_completion_tokens_total{key_id="alice"} 28.0',
        "dedicate_time_to_first_token_seconds_count 2.0",
        "dedicate_inter_token_latency_seconds_count 26.0",
        "dedicate_requests_in_progress 0.0",
        "dedicate_e2e_request_latency_seconds_count 2.0",
        'dedicate_request_prompt_tokens_bucket{le="16.0"} 1.0',
        'dedicate_request_generation_tokens_bucket{le="16.0"} 2.0',
        "dedicate_num_requests_waiting 2.0",
        "dedicate_num_preemptions_total 5.0",
        "dedicate_kv_cache_usage_ratio 0.25",
    ):
        assert line in text, line


@pytest.mark.parametrize("stream", [False, True])
async def test_access_log_tells_counts_and_times_as_json(api, caplog, stream):
    with caplog.at_level(logging.INFO, "dedicate_runtime.access"):
        await api.chat("private", stream=stream)
    (record,) = [record for record in caplog.records if record.name == "dedicate_runtime.access"]
    line = json.loads(JsonFormatter().format(record))
    assert line["message"] == "request"
    assert line["level"] == "info"
    assert (line["status"], line["key_id"], line["path"]) == (200, "alice", "/unit/v1/chat/completions")
    assert (line["prompt_tokens"], line["completion_tokens"]) == (25, 14)
    assert line["duration_s"] >= line["time_to_first_token_s"] >= 0
    assert line["client_left"] is False
    assert "private" not in json.dumps(line)


async def test_models_are_listed_with_their_context(api):
    body = (await api.client.get("/unit/v1/models")).json()
    assert [card["id"] for card in body["data"]] == ["unit/test", "alias"]
    assert {card["max_model_len"] for card in body["data"]} == {128}
    card = (await api.client.get("/unit/v1/models/unit/test")).json()
    assert card == body["data"][0]


async def test_version_and_tokenizer_info(api):
    assert (await api.client.get("/unit/version")).json()["version"]
    info = (await api.client.get("/unit/tokenizer_info")).json()
    assert info["end_ids"] == [257, 258]
