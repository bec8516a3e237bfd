"""The examples of docs/clients.md, run as they stand: copied into a project they work."""

from __future__ import annotations

import os
import sys

import pytest

from dev.clients import NODE_CLIENTS, SNIPPETS

ANSWERS = {
    "curl_chat.sh": ["Tokyo", "data: [DONE]"],
    "curl_completion.sh": ["Tokyo"],
    "openai_chat.py": ["Tokyo"],
    "openai_stream.py": ["Tokyo"],
    "openai_async.py": ["Tokyo", "Berlin"],
    "openai_completion.py": ["Tokyo", "Berlin"],
    "openai_chat.mjs": ["Tokyo"],
    "openai_stream.mjs": ["Tokyo"],
    "langchain_chat.py": ["Tokyo", "Berlin", "Cairo", "Athens"],
    "langchain_completion.py": ["Tokyo", "Berlin", "Rome", "Athens"],
    "llama_index_chat.py": ["Tokyo", "Berlin"],
    "litellm_chat.py": ["Tokyo", "Berlin"],
    "vercel_ai.mjs": ["Tokyo", "Berlin"],
    "llm.sh": ["Tokyo", "Berlin"],
    "lm_eval.sh": ["|acc", "|    1|"],
}
"""What each prints, in this order."""


def test_every_snippet_is_run():
    assert {file.name for file in SNIPPETS.iterdir() if file.is_file()} == ANSWERS.keys()


@pytest.fixture
def words_in_order():
    def check(text, words):
        rest = text
        for word in words:
            before, found, rest = rest.partition(word)
            assert found, f"{word} is missing in {before!r} of {text!r}"

    return check


def snippets(suffix):
    return pytest.mark.parametrize("name", [name for name in ANSWERS if name.endswith(suffix)])


@snippets(".py")
def test_python(name, run, python_clients, words_in_order):
    python = sys.executable if name.startswith("openai_") else python_clients  # ours has the newer openai
    words_in_order(run(python, SNIPPETS / name), ANSWERS[name])


def test_python_with_an_older_openai(run, python_clients, words_in_order):
    words_in_order(run(python_clients, SNIPPETS / "openai_chat.py"), ANSWERS["openai_chat.py"])


@snippets(".mjs")
def test_node(name, run, node_programs, words_in_order):
    words_in_order(run(NODE_CLIENTS.node, node_programs / name), ANSWERS[name])


@snippets(".sh")
def test_shell(name, run, environment, python_clients, lm_eval, capitals, words_in_order):
    folders = [str(python.parent) for python in (python_clients, lm_eval)]
    path = os.pathsep.join([*folders, environment["PATH"]])
    words_in_order(run("bash", "-eu", SNIPPETS / name, PATH=path, TASK=str(capitals)), ANSWERS[name])


@pytest.fixture
def capitals(tmp_path):
    """A task of lm-evaluation-harness that needs no network."""
    data, task = tmp_path / "capitals.jsonl", tmp_path / "capitals.yaml"
    data.write_text(
        '{"country": "France", "choices": [" Paris", " Lyon"]}\n{"country": "Italy", "choices": [" Rome", " Milan"]}\n'
    )
    task.write_text(
        f"task: capitals\ndataset_path: json\ndataset_kwargs: {{data_files: {data}}}\ntest_split: train\n"
        'output_type: multiple_choice\ndoc_to_text: "The capital of {{country}} is"\ndoc_to_choice: "{{choices}}"\n'
        "doc_to_target: 0\nmetric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    return task
