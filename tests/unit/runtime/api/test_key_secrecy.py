"""No key leaves the process, in whatever way it came in: not as it is, and not as a digest of it."""

from __future__ import annotations

import base64
import hashlib
import logging

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dedicate_runtime.api.keys import KeyRing
from dedicate_runtime.api.limits import Limiter, LimitPolicy
from dedicate_runtime.api.mounted_files import MountedFiles
from dedicate_runtime.api.usage import UsageBook
from dedicate_runtime.logs import JsonFormatter
from dedicate_runtime.metrics import Metrics

RIGHT = "sk-right-3f9b"
WRONG, QUERY, USER = "sk-wrong-77c1", "sk-query-a802", "sk-user-5d0e"
SECOND, BROKEN, BEYOND = "sk-second-e410", "sk-broken-90ab", "sk-beyond-\u00e9\u00df"
SECRETS = (RIGHT, WRONG, QUERY, USER, SECOND, BROKEN, BEYOND)
OTHERS_LOGS = ("httpx", "httpcore", "asyncio")  # those of the tests' own client


def forms_of(secret):
    """A secret, and what a careless hand makes of it."""
    raw = secret.encode()
    yield from (secret, ascii(secret)[1:-1], raw.hex(), base64.b64encode(raw).decode())
    for algorithm in ("md5", "sha1", "sha256", "sha512"):
        digest = hashlib.new(algorithm, raw).digest()
        yield from (digest.hex(), digest.hex()[:16], base64.b64encode(digest).decode())


@pytest.fixture
def logged(caplog):
    """What the runtime would have written to its log, each record as a line."""
    caplog.set_level(logging.DEBUG)
    formatter = JsonFormatter()
    return lambda: "\n".join(
        formatter.format(record) for record in caplog.records if not record.name.startswith(OTHERS_LOGS)
    )


async def send_every_way(api):
    """Right, wrong, malformed and duplicated keys, where they belong and where they do not; gives all answers."""
    client = httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://unit.test")
    values = [f"Bearer {secret}".encode() for secret in SECRETS]
    values += [
        f"Bearer {BEYOND}".encode("latin-1"),
        b"Basic " + RIGHT.encode(),
        RIGHT.encode(),
        b"Bearer " + RIGHT.encode() * 50,
    ]
    headers = [[(name, value)] for value in values for name in (b"authorization", b"autherization")]
    headers += [[(b"authorization", values[0]), (b"autherization", value)] for value in values]
    headers += [[(b"authorization", values[0]), (b"authorization", value)] for value in values]
    headers += [[(b"x-api-key", RIGHT.encode())], [(b"cookie", b"key=" + RIGHT.encode())]]
    bodies = [{"user": USER}, {"user": [USER]}, {"temperature": USER}, {"stop": {USER: 1}}]
    bodies += [{"user": USER, "stream": True}, {"max_tokens": 10**6, "user": USER}]
    answers = []
    for given in headers:
        for method, path in (("GET", "v1/usage"), ("GET", "v1/models"), ("PUT", "v1/usage"), ("GET", "nowhere")):
            url = f"/unit/{path}?api_key={QUERY}&key={RIGHT}"
            answers.append(await client.request(method, url, headers=given))
        for body in bodies:
            whole = {"model": "unit/test", "prompt": "Hi", **body}
            url = f"/unit/v1/completions?api_key={QUERY}"
            answers.append(await client.post(url, json=whole, headers=given))
        answers.append(await client.post("/unit/v1/completions", content=f'{{"user": "{USER}', headers=given))
    answers += [await client.get(f"/unit/{page}") for page in ("openapi.json", "docs", "health", "version")]
    return answers


async def test_no_key_is_in_anything_that_comes_out(make_api, keys_dir, logged):
    for client, secret in (("alice", RIGHT), ("second", SECOND), ("beyond", BEYOND), ("twin", RIGHT)):
        (keys_dir / client).write_text(secret, encoding="utf-8")
    (keys_dir / "broken").write_text(f"{BROKEN}\n{BROKEN}")
    api = make_api(limits="default: {requestsPerMinute: 20, tokensPerMinute: 100000}", clock=lambda: 0)
    answers = await send_every_way(api)
    assert {200, 400, 401, 404, 405, 429} <= {answer.status_code for answer in answers}
    api.script(fail_after=1)
    answers.append(await api.complete(stream=True))

    out = [logged(), generate_latest(api.metrics.registry).decode()]
    out += [answer.text + str(sorted(answer.headers.items())) for answer in answers]
    assert 'key_id="alice"' in out[1]
    assert '"key_id":"alice"' in out[0]
    assert "API keys have a problem" in out[0]
    everything = "\n".join(out)
    for secret in SECRETS:
        for form in forms_of(secret):
            assert form not in everything


async def test_no_digest_of_the_rings_own_is_either(keys_dir, logged):
    """Also not when it is replaced, when it fails, or when somebody prints it."""
    metrics, usage = Metrics(CollectorRegistry()), UsageBook(since=0)
    ring = KeyRing(keys_dir)
    files = MountedFiles(keys=ring, limits_file=None, limiter=Limiter(LimitPolicy()), usage=usage, metrics=metrics)
    digests = set(ring._owners)
    (keys_dir / "bob").write_text("sk-bob")
    await files.refresh()
    digests |= set(ring._owners)
    keys_dir.rename(keys_dir.with_name("gone"))
    await files.refresh()
    out = logged() + generate_latest(metrics.registry).decode() + repr(ring) + str(ring)
    assert len(digests) == 2
    for digest in digests | {ring._blinding}:
        for form in (digest.hex(), digest.hex()[:16], base64.b64encode(digest).decode(), repr(digest)):
            assert form not in out
