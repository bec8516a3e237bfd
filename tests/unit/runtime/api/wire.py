"""What tests of the rows share: how to ask, how to read answers, how a refusal looks."""

from __future__ import annotations

import json

KEYS = {"message", "type", "param", "code"}


async def both(api, **fields):
    """Send the same fields to both endpoints."""
    return [await api.chat(**fields), await api.complete(**fields)]


async def converse(api, messages, path="v1/chat/completions", **fields):
    return await api.client.post(f"/unit/{path}", json={"model": "alias", "messages": messages, **fields})


def text_of(response):
    assert response.status_code == 200, response.text
    choice = response.json()["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def chunks_of(response):
    """Split a stream into its events' payloads, `[DONE]` left out, which must be the last."""
    assert response.status_code == 200, response.text
    *frames, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


def pieces_of(response):
    """Give the texts of a stream of completions, chunk by chunk."""
    assert response.status_code == 200, response.text
    chunks = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return [chunk["choices"][0]["text"] for chunk in chunks if chunk["choices"]]


def prompt_text(api):
    return api.engine.tokenizer.decode(list(api.engine.requests[-1].prompt_token_ids), skip_special_tokens=False)


def ids_of(*parts):
    """Join texts, one token a byte, and token ids."""
    bytes_as_ids = sorted([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])
    others = [byte for byte in range(0x100) if byte not in bytes_as_ids]
    order = bytes_as_ids + others
    return [token for part in parts for token in ([part] if isinstance(part, int) else map(order.index, part.encode()))]


def assert_envelope(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == KEYS
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert response.headers["x-request-id"]
    return error


def assert_refused(response, *, param, status=400, code=None):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert (error["param"], error["code"]) == (param, code)
