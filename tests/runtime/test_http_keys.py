"""Keys, limits and usage of a live runtime, as its clients and its operators meet them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket

import httpx
import openai
import pytest

from dev.model.api import MODEL_ID

LIMITS = "keys: {%s}\n"
STRICT = "tight: {requestsPerMinute: 2, tokensPerMinute: 1000, concurrentRequests: 1}"


@pytest.fixture(scope="module")
def limits_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("limits") / "limits.yaml"
    path.write_text(LIMITS % STRICT)
    return path


@pytest.fixture(scope="module")
def live(start_runtime, model_folder, limits_path):
    runtime = start_runtime(
        model_folder,
        *("--limits-file", str(limits_path), "--log-level", "debug"),
        *("--failure-file", str(limits_path.with_name("failure"))),
        key="sk-live-0b9c",
    )
    (runtime.keys_dir / "tight").write_text("sk-tight-51ad\n")
    return runtime.wait_ready()


@pytest.fixture
def tight(live):
    """The official client with the key that has limits, which tries nothing twice."""
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-tight-51ad", timeout=60, max_retries=0)
    yield client
    client.close()


def replace_limits(live, path, text, *, message):
    """Write the file and wait until the runtime has said what it makes of it."""
    count = len(live.logged(message))
    path.write_text(text)
    live.wait_until(lambda: len(live.logged(message)) > count, deadline_s=10, what=message)


def usage_of_tight(live):
    headers = {"Authorization": "Bearer sk-tight-51ad"}
    return httpx.get(f"{live.url}/v1/usage", headers=headers, timeout=10).json()


def ask(client, **fields):
    return client.completions.with_raw_response.create(model=MODEL_ID, prompt="Hi", max_tokens=4, **fields)


def test_a_client_of_openai_meets_its_limits(live, limits_path, tight):
    replace_limits(live, limits_path, LIMITS % "tight: {requestsPerMinute: 1000}", message="Limits loaded")
    replace_limits(live, limits_path, LIMITS % STRICT, message="Limits loaded")
    first = ask(tight)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    streamed = ask(tight, stream=True)
    assert streamed.headers["x-ratelimit-remaining-requests"] == "0"
    assert re.fullmatch(r"[0-9.]+s|1m0s", streamed.headers["x-ratelimit-reset-requests"])
    assert list(streamed.parse())
    with pytest.raises(openai.RateLimitError) as caught:
        ask(tight)
    assert (caught.value.code, caught.value.type) == ("rate_limit_exceeded", "requests")
    assert 0 < float(caught.value.response.headers["retry-after-ms"]) <= 30_000
    usage = usage_of_tight(live)
    assert (usage["key_id"], usage["requests"], usage["failed_requests"]) == ("tight", 3, 1)
    assert usage["total_tokens"] == 2 * first.parse().usage.total_tokens
    assert usage["running_requests"] == 0
    assert ask(live.openai()).http_response.status_code == 200
    assert "x-ratelimit-limit-requests" not in ask(live.openai()).headers


def test_what_can_never_be_let_in_is_not_tried_again(live, limits_path):
    replace_limits(live, limits_path, LIMITS % "tight: {tokensPerMinute: 5}", message="Limits loaded")
    before = usage_of_tight(live)["requests"]
    client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="sk-tight-51ad", timeout=60, max_retries=5)
    with client, pytest.raises(openai.RateLimitError, match="Request too large for client tight on tokens per min"):
        client.completions.create(model=MODEL_ID, prompt="Hi", max_tokens=100)
    assert usage_of_tight(live)["requests"] == before + 1


def test_a_client_that_waits_as_told_is_let_in(live, limits_path, tight):
    """At the told time and not after another refusal: the client may try again once."""
    replace_limits(live, limits_path, "{}", message="Limits loaded")
    replace_limits(live, limits_path, LIMITS % "tight: {requestsPerMinute: 1}", message="Limits loaded")
    ask(tight)  # an empty bucket stays empty when it grows
    replace_limits(live, limits_path, LIMITS % "tight: {requestsPerMinute: 40}", message="Limits loaded")
    before = usage_of_tight(live)
    patient = tight.with_options(max_retries=1)
    for _ in range(4):
        assert ask(patient).http_response.status_code == 200
    after = usage_of_tight(live)
    num_refused = after["failed_requests"] - before["failed_requests"]
    assert 1 <= num_refused <= 4
    assert after["requests"] - before["requests"] == 4 + num_refused


def test_limits_that_are_wrong_leave_the_old_ones(live, limits_path):
    replace_limits(live, limits_path, LIMITS % STRICT, message="Limits loaded")
    replace_limits(live, limits_path, "default: {requestsPerMinute: 0}", message="Limits stay as they were")
    record = live.logged("Limits stay as they were")[-1]
    assert record["problem"].startswith(f"--limits-file {limits_path}: default.requestsPerMinute must be")
    reloads = 'dedicate_config_last_reload_successful{file="limits"}'
    assert live.metric(reloads) == 0
    assert usage_of_tight(live)["limits"]["requests_per_minute"] == 2
    replace_limits(live, limits_path, "{}", message="Limits loaded")
    assert live.metric(reloads) == 1
    assert usage_of_tight(live)["limits"] == dict.fromkeys(
        ("requests_per_minute", "tokens_per_minute", "concurrent_requests")
    )


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "it cannot be read: No such file or directory."),
        ("default: {requestPerMinute: 5}", "default.requestPerMinute is no field; there are "),
    ],
    ids=["missing", "wrong"],
)
def test_a_start_with_limits_that_cannot_be_used_ends_with_the_sentence(
    start_runtime, model_folder, tmp_path, content, sentence
):
    path, failure = tmp_path / "limits.yaml", tmp_path / "failure"
    if content is not None:
        path.write_text(content)
    runtime = start_runtime(model_folder, "--limits-file", str(path), "--failure-file", str(failure))
    assert runtime.wait_end() == 2
    assert failure.read_text().startswith(f"--limits-file {path}: {sentence}")
    assert runtime.key not in failure.read_text() + runtime.log.read_text()


RIGHT, WRONG, QUERY, USER = "sk-live-0b9c", "sk-wrong-7d21", "sk-query-33fe", "sk-user-aa40"


def test_no_key_is_in_anything_that_a_live_runtime_writes(live, limits_path):
    """Hundreds of requests with keys where they belong and where they do not, at the most talkative log level."""
    answers = []
    with httpx.Client(timeout=60) as client:
        for value in (f"Bearer {RIGHT}", f"Bearer {WRONG}", f"Basic {RIGHT}", RIGHT, f"Bearer {RIGHT}{WRONG}"):
            for names in (("Authorization",), ("Autherization",), ("Authorization", "Autherization")):
                for second in (value, f"Bearer {WRONG}"):
                    headers = dict(zip(names, (value, second), strict=False))
                    for path in ("v1/models", "v1/usage", "openapi.json", "nowhere"):
                        url = f"{live.url}/{path}?api_key={QUERY}&key={RIGHT}"
                        answers.append(client.get(url, headers=headers))
                    for body in ({"user": USER}, {"user": [USER]}, {"top_p": USER}, {"user": USER, "stream": True}):
                        whole = {"model": MODEL_ID, "prompt": "Hi", "max_tokens": 1, **body}
                        url = f"{live.url}/v1/completions?api_key={QUERY}"
                        answers.append(client.post(url, json=whole, headers=headers))
                    answers.append(client.post(f"{live.url}/v1/completions", content=f'{{"{USER}', headers=headers))
        answers.append(client.get(f"{live.management_url}/metrics"))
    raw = f"GET /smollm/v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRONG}\r\nbroken {WRONG}\r\n\r\n"
    answers_of_the_parser = send_raw(live, raw)
    assert {200, 400, 401, 404} <= {answer.status_code for answer in answers}
    failure = limits_path.with_name("failure")
    everything = "\n".join(
        [
            live.log.read_text(),
            answers_of_the_parser,
            failure.read_text() if failure.exists() else "",
            *(answer.text + json.dumps(dict(answer.headers)) for answer in answers),
        ]
    )
    assert '"key_id":"tester"' in everything
    for secret in (RIGHT, WRONG, QUERY, USER, "sk-tight-51ad"):
        digest = hashlib.sha256(secret.encode())
        encoded = base64.b64encode(secret.encode()).decode()
        for form in (
            secret,
            secret.encode().hex(),
            encoded,
            digest.hexdigest(),
            base64.b64encode(digest.digest()).decode(),
        ):
            assert form not in everything


def send_raw(live, text):
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as connection:
        connection.sendall(text.encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.makefile("rb").read().decode("latin-1")
