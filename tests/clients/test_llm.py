"""Simon Willison's `llm`, the endpoint named in its file: for chats, and with `completion: true` for completions."""

from __future__ import annotations

import json

import pytest


@pytest.fixture(scope="module")
def llm(run, python_clients, environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    models = [
        {"model_id": "chat", "model_name": environment["MODEL"], "api_key_name": "dedicate"},
        {"model_id": "text", "model_name": environment["MODEL"], "api_key_name": "dedicate", "completion": True},
    ]
    (folder / "extra-openai-models.yaml").write_text(  # JSON is YAML
        json.dumps([{**model, "api_base": environment["OPENAI_BASE_URL"]} for model in models])
    )
    (folder / "keys.json").write_text(json.dumps({"dedicate": environment["OPENAI_API_KEY"]}))
    return lambda *arguments: run(python_clients.with_name("llm"), *arguments, LLM_USER_PATH=str(folder))


def test_chat_streamed_then_continued_whole(llm):
    assert "Tokyo" in llm("-m", "chat", "-s", "Be brief.", "What is the capital of Japan?")
    assert llm("-c", "--no-stream", "And of Egypt?").strip()
    logged = json.loads(llm("logs", "--json", "-n", "2"))
    assert [entry["input_tokens"] > 0 for entry in logged] == [True] * 2


def test_completion_with_a_seed(llm, runtime):
    options = ("-m", "text", "-o", "max_tokens", "6", "-o", "seed", "5")
    whole = runtime.complete("The capital of Japan is", max_tokens=6, seed=5)["choices"][0]["text"]
    assert llm(*options, "The capital of Japan is") == f"{whole}\n"
