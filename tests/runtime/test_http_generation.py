"""What a live runtime computes: repeatable alone and in company, freed on disconnect, bytes as documented."""

from __future__ import annotations

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

PROMPT = "Once upon a time there was"
COMPANY = [
    {"prompt": f"{number}: " + "a story about the sea " * number, "temperature": number % 2, "seed": number}
    for number in range(1, 6)
]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"random_sed": 7, "temperature": 1.3, "top_p": 0.95, "top_k": 0},
        {"seed": 7, "repetition_penalty": 1.3},
    ],
    ids=str,
)
def test_determinism_alone_and_in_company(runtime, sampling):
    """The same request brings the same tokens, whatever else is computed and in whatever order it came."""
    request = {"max_tokens": 12, **sampling}
    alone = runtime.complete(PROMPT, **request)["choices"][0]
    with ThreadPoolExecutor(len(COMPANY) + 2) as pool:
        before = pool.submit(runtime.complete, PROMPT, **request)
        company = [pool.submit(runtime.complete, max_tokens=6, **other) for other in COMPANY]
        after = pool.submit(runtime.complete, PROMPT, **request)
        assert before.result()["choices"][0] == alone
        assert after.result()["choices"][0] == alone
        for other in company:
            other.result()


def test_determinism_default_seed_repeats(runtime):
    first, second = (runtime.complete(PROMPT, max_tokens=8)["choices"][0]["text"] for _ in range(2))
    assert first == second
    assert first == runtime.complete(PROMPT, max_tokens=8, random_sed=2)["choices"][0]["text"]


def test_determinism_batch_equals_separate_requests(runtime):
    prompts = ["The sun", "A river", "My dog"]
    batch = runtime.complete(prompts, max_tokens=4, seed=3, n=2)
    separate = [
        choice for prompt in prompts for choice in runtime.complete(prompt, max_tokens=4, seed=3, n=2)["choices"]
    ]
    assert [choice["text"] for choice in batch["choices"]] == [choice["text"] for choice in separate]


def test_stop_is_cut_at_the_same_place_streamed_and_whole(runtime):
    whole = runtime.complete("The capital of France is", temperature=0, max_tokens=12)["choices"][0]["text"]
    stop = whole[9:13]
    expected = whole[: whole.find(stop)]
    body = {"model": runtime.model, "prompt": "The capital of France is", "temperature": 0, "max_tokens": 12}
    stopped = runtime.complete("The capital of France is", temperature=0, max_tokens=12, stop=[stop])["choices"][0]
    assert (stopped["text"], stopped["finish_reason"]) == (expected, "stop")
    with runtime.stream("/v1/completions", {**body, "stop": [stop]}) as response:
        chunks = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected


def test_echo_with_logprobs_scores_the_prompt(runtime):
    """What lm-evaluation-harness asks for: token ids, echo, one logprob, one token."""
    prompt = runtime.post("/tokenize", {"prompt": "The capital of France is Paris"}).json()["tokens"]
    choice = runtime.complete(prompt, echo=True, logprobs=1, max_tokens=1, temperature=0)["choices"][0]
    logprobs = choice["logprobs"]
    assert {len(values) for values in logprobs.values()} == {len(prompt) + 1}
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    paris = logprobs["token_logprobs"][len(prompt) - 1]
    assert paris == max(logprobs["top_logprobs"][len(prompt) - 1].values())


def test_disconnect_frees_the_sequence_and_its_blocks(runtime):
    idle = runtime.metric("dedicate_kv_cache_blocks")
    body = {"model": runtime.model, "prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True}
    with runtime.stream("/v1/completions", body) as response:
        lines = response.iter_lines()  # held: a generator that is dropped closes the response
        next(lines)
        assert runtime.metric("dedicate_requests_in_progress") == 1
    runtime.wait_until(
        lambda: (
            (runtime.metric("dedicate_num_requests_running"), runtime.metric("dedicate_kv_cache_free_blocks"))
            == (0, idle)
        ),
        deadline_s=10,
        what="freeing",
    )
    runtime.wait_logged("request", client_left=True, choices=1)


def test_disconnect_of_a_client_that_waits_for_a_whole_answer(runtime):
    body = {"model": runtime.model, "prompt": PROMPT, "max_tokens": 4000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        runtime.post("/v1/completions", body, timeout=1)
    runtime.wait_until(lambda: runtime.metric("dedicate_num_requests_running") == 0, deadline_s=10, what="freeing")


@pytest.mark.parametrize("header", ["Authorization", "Autherization"])
def test_raw_bytes_of_a_stream(runtime, header):
    """What goes over the wire, read from a bare socket."""
    body = json.dumps(
        {"model": runtime.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": True}
    ).encode()
    head = (
        f"POST /smollm/v1/chat/completions HTTP/1.1\r\nHost: x\r\n{header}: Bearer {runtime.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    ).encode()
    received = b""
    with socket.create_connection(("127.0.0.1", runtime.port), timeout=60) as connection:
        connection.sendall(head + body)
        while part := connection.recv(65536):
            received += part
    headers, _, chunked = received.partition(b"\r\n\r\n")
    assert headers.startswith(b"HTTP/1.1 200 ")
    assert b"content-type: text/event-stream\r\n" in headers.lower() + b"\r\n"
    assert b"x-request-id: " in headers
    stream = b""
    while chunked:
        size, _, chunked = chunked.partition(b"\r\n")
        length = int(size, 16)
        stream += chunked[:length]
        chunked = chunked[length + 2 :]
    frames = stream.split(b"\n\n")
    assert b"\r" not in stream
    assert frames[-2:] == [b"data: [DONE]", b""]
    assert all(frame.startswith(b"data: {") for frame in frames[:-2])
    assert json.loads(frames[0][6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}


def test_key_rotation_without_restart(runtime):
    def status(key):
        headers = {"Autherization": f"Bearer {key}"}
        return httpx.get(f"{runtime.url}/v1/models", headers=headers, timeout=10).status_code

    assert status("sk-second") == 401
    second = runtime.keys_dir / "second"
    second.write_text("sk-second\n")
    runtime.wait_until(lambda: status("sk-second") == 200, deadline_s=5, what="taking up a key")
    second.unlink()
    runtime.wait_until(lambda: status("sk-second") == 401, deadline_s=5, what="revoking")
    assert status(runtime.key) == 200


@pytest.mark.parametrize(
    "body",
    [b"{", b"[" * 50_000, b'{"model": "\\ud800"}', b'{"temperature": NaN}', b"\xff\xfe", b""],
    ids=["cut", "deep", "surrogate", "nan", "bytes", "empty"],
)
def test_bad_bodies_disturb_nothing(runtime, body):
    response = httpx.post(f"{runtime.url}/v1/completions", content=body, headers=runtime.headers, timeout=10)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert runtime.complete("Hi", max_tokens=1)["usage"]["completion_tokens"] == 1


def test_paths_outside_the_prefix_are_404(runtime):
    for path in ("/v1/models", "/smollm2/v1/models", "/", "/metrics", "/healthz"):
        response = httpx.get(f"http://127.0.0.1:{runtime.port}{path}", headers=runtime.headers, timeout=10)
        assert response.status_code == 404
        assert response.json()["error"]["message"]


def test_log_holds_no_key_and_no_text(runtime):
    body = {"model": runtime.model, "prompt": "a very private prompt", "max_tokens": 2}
    headers = runtime.headers | {"x-request-id": "unseen-1"}
    assert runtime.post("/v1/completions", body, headers=headers).status_code == 200
    runtime.wait_logged("request", request_id="unseen-1", key_id="tester")
    text = runtime.log.read_text()
    assert runtime.key not in text
    assert "private" not in text
