"""A shared endpoint through the ingress controller, as clients see it."""

from __future__ import annotations

import json

import httpx
import openai
import pytest

CHAT = {
    "model": "smollm",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
}
TEXT = {"model": "smollm", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
TIMEOUT_S = 120


@pytest.fixture
def http(shared):
    with httpx.Client(base_url=shared.url, timeout=TIMEOUT_S, trust_env=False) as client:
        yield client


@pytest.fixture
def openai_client(shared):
    http_client = httpx.Client(trust_env=False)
    with openai.OpenAI(
        base_url=shared.url, api_key=shared.key, http_client=http_client, timeout=TIMEOUT_S, max_retries=0
    ) as client:
        yield client


def read_events(answer):
    data = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: ")]
    assert data.pop() == "[DONE]"
    return [json.loads(item) for item in data]


@pytest.mark.promise(1)
def test_the_columns_say_that_it_serves(kube, shared):
    header, row = kube.kubectl("get", "de", "shared", "--namespace=e2e").splitlines()
    assert header.split() == ["NAME", "READY", "REASON", "URL", "REPLICAS", "MODEL", "AGE"]
    assert row.split()[:6] == ["shared", "True", "Serving", shared.url, "1/1", "pvc://models/smollm"]


def test_every_condition_says_that_all_is_well(endpoints, shared):
    conditions = endpoints.get("shared")["status"]["conditions"]
    assert {item["type"]: item["status"] for item in conditions} == {
        "Ready": "True",
        "Accepted": "True",
        "ModelCached": "True",
        "WorkloadAvailable": "True",
        "RouteAdmitted": "True",
        "Progressing": "False",
    }


@pytest.mark.promise(12)
def test_the_model_pod_is_as_restricted_as_the_namespace_demands(kube, shared):
    (pod,) = kube.items("pods", "e2e", "dedicate.dev/endpoint=shared")
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.promise(1)
def test_chat_answers(http, shared):
    answer = http.post("/chat/completions", json=CHAT, headers=shared.headers)
    assert answer.status_code == 200
    (choice,) = answer.json()["choices"]
    assert "Paris" in choice["message"]["content"]


def test_chat_streams_the_same_answer(http, shared):
    whole = http.post("/chat/completions", json=CHAT, headers=shared.headers).json()["choices"][0]["message"]["content"]
    with http.stream("POST", "/chat/completions", json=CHAT | {"stream": True}, headers=shared.headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = read_events(answer)
    pieces = [choice["delta"].get("content") or "" for event in events for choice in event["choices"]]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1


def test_text_completes(http, shared):
    answer = http.post("/completions", json=TEXT, headers=shared.headers)
    assert answer.status_code == 200
    assert "Paris" in answer.json()["choices"][0]["text"]


def test_text_streams(http, shared):
    with http.stream("POST", "/completions", json=TEXT | {"stream": True}, headers=shared.headers) as answer:
        events = read_events(answer)
    assert "Paris" in "".join(choice["text"] for event in events for choice in event["choices"])


def test_openai_python_needs_nothing_but_url_and_key(openai_client):
    chunks = openai_client.chat.completions.create(**CHAT, stream=True)
    assert "Paris" in "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert "Paris" in openai_client.completions.create(**TEXT).choices[0].text
    assert "smollm" in [model.id for model in openai_client.models.list()]


@pytest.mark.parametrize("header", ["Authorization", "Autherization"])
def test_both_spellings_of_the_header_are_taken(http, shared, header):
    assert http.get("/models", headers={header: f"Bearer {shared.key}"}).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic c21vbGxt"}])
def test_without_a_good_key_it_is_401_in_the_envelope(http, headers):
    answer = http.post("/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/nothing/v1/chat/completions", "/shared2/v1/models", "/shared/v1/nothing"])
def test_an_unknown_path_is_404(node_cluster, shared, path):
    url = shared.url.removesuffix("/shared/v1") + path
    assert httpx.post(url, json=CHAT, headers=shared.headers, trust_env=False).status_code == 404


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics", "/shared/metrics"])
def test_management_is_not_routed(shared, path):
    url = shared.url.removesuffix("/shared/v1") + path
    assert httpx.get(url, headers=shared.headers, trust_env=False).status_code == 404


def test_a_bad_request_names_the_parameter(http, shared):
    answer = http.post("/chat/completions", json=CHAT | {"temperature": "hot"}, headers=shared.headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "temperature"


def test_kubectl_reads_the_logs_of_the_model(kube, shared):
    assert kube.kubectl("logs", "--namespace=e2e", "deployment/shared", "--tail=1").strip()
