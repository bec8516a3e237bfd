"""Bad input and bad times: always the envelope, never a 500."""

from __future__ import annotations

import httpx
import pytest

KEYS = {"message", "type", "param", "code"}


def envelope(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == KEYS
    assert error["message"]
    return error


async def post(api, body, **headers):
    return await api.client.post("/unit/v1/chat/completions", content=body, headers=headers)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": NaN}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b"[" * 50_000,
        b'{"messages":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": ' + b"9" * 5000 + b"}",
        b'{"model": "unit/test", "messages": [{"role": "user", "content": "\\udfff"}]}',
        b"\x00" * 10,
        b"model=unit",
    ],
    ids=lambda body: repr(body[:24]),
)
async def test_errors_malformed_body_is_400(api, body):
    assert envelope(await post(api, body), 400)["type"] == "invalid_request_error"
    assert (await api.chat()).status_code == 200  # nothing else is disturbed


async def test_errors_duplicate_keys_do_not_confuse(api):
    body = b'{"model": "alias", "model": "unit/test", "messages": [{"role": "user", "content": "x"}]}'
    assert (await post(api, body)).status_code == 200


async def test_errors_body_over_the_limit_is_413(api):
    async def parts():
        for _ in range(40):
            yield b"x" * 1024 * 1024

    envelope(await post(api, b"x", **{"content-length": str(10**9)}), 413)
    envelope(await api.client.post("/unit/v1/completions", content=parts()), 413)


async def test_errors_compressed_body_is_refused(api):
    envelope(await post(api, b"x", **{"content-encoding": "gzip"}), 415)


@pytest.mark.parametrize(
    "path", ["/", "/v1/models", "/other/v1/models", "/unit", "/unit/", "/unit/v1", "/unit2/v1/models", "/unit/v1/x"]
)
async def test_errors_unknown_paths_are_404(api, path):
    envelope(await api.client.get(path), 404)


async def test_errors_wrong_method_is_405(api):
    response = await api.client.get("/unit/v1/chat/completions")
    envelope(response, 405)
    assert response.headers["allow"] == "POST"


async def test_errors_unknown_model_page_is_404(api):
    assert envelope(await api.client.get("/unit/v1/models/other/model"), 404)["code"] == "model_not_found"


async def test_errors_queue_full_is_429_with_retry_after(api):
    api.script(queue_full=True)
    response = await api.chat()
    envelope(response, 429)
    assert 0 < int(response.headers["retry-after"]) <= 120


async def test_errors_loading_is_503_with_retry_after(make_api):
    api = make_api(serving=False)
    for response in (await api.chat(), await api.client.get("/unit/v1/models"), await api.client.get("/unit/health")):
        assert envelope(response, 503)["code"] == "loading"
        assert 0 < int(response.headers["retry-after"]) <= 120


async def test_errors_draining_is_503(api):
    api.readiness.start_draining()
    assert envelope(await api.chat(), 503)["code"] == "draining"


async def test_errors_dead_engine_is_503(api):
    await api.engine.aclose()
    assert envelope(await api.complete(), 503)["code"] == "engine_unavailable"


async def test_errors_failed_step_is_500_and_frees_the_others(api):
    api.script(fail_after=2)
    error = envelope(await api.complete(n=2), 500)
    assert error["message"] == "The step failed."
    assert api.engine.streams[0].is_closed


async def test_errors_unexpected_fault_is_500_in_the_envelope(api, monkeypatch, caplog):
    async def break_down(*_):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(api.engine, "submit", break_down)
    response = await api.chat()
    assert "secret" not in envelope(response, 500)["message"]
    assert "ZeroDivisionError" in caplog.text


async def test_request_id_on_every_answer_and_echoed(api):
    for response in (await api.chat(), await api.client.get("/nowhere")):
        assert response.headers["x-request-id"].startswith("req-")
    response = await api.client.get("/unit/version", headers={"x-request-id": "mine-1"})
    assert response.headers["x-request-id"] == "mine-1"
    response = await api.client.get("/unit/version", headers={"x-request-id": "x" * 500})
    assert response.headers["x-request-id"].startswith("req-")


async def test_disconnect_frees_a_waiting_answer(api):
    """A client that leaves before its answer is there: its sequence is given up."""
    import asyncio
    import json

    api.script(hang_after=1)
    body = json.dumps({"model": "alias", "prompt": "x"}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/unit/v1/completions",
        "raw_path": b"/unit/v1/completions",
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer sk-unit-test")],
    }
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await api.engine.is_hanging.wait()
        return {"type": "http.disconnect"}

    async def send(_message):
        pass

    async with asyncio.timeout(10):
        await api.app(scope, receive, send)
    assert api.engine.streams[0].is_closed


async def test_docs_are_served_under_the_prefix(api):
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")
    assert (await client.get("/unit/docs")).status_code == 200
    page = (await client.get("/unit/openapi.json")).json()
    chat = page["paths"]["/unit/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat["properties"]["temperature"]["default"] == 0.7
    assert chat["required"] == ["model", "messages"]
