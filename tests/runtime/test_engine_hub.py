"""A runtime that is alone, without an operator, fetches its model itself: the same download, from a hub's protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dedicate_runtime.errors import ExitCode
from tests.hub_server import TOKEN, HubServer, Repository

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 100_000,
    "pytorch_model.bin": b"unwanted",
}

FETCH = """
import json, logging, sys
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
from dedicate_runtime.errors import StartError
from dedicate_runtime.worker.hub import resolve_model
revision = sys.argv[2] or None
try:
    print(json.dumps({"folder": str(resolve_model(sys.argv[1], revision, with_code=False))}))
except StartError as error:
    print(json.dumps({"code": error.exit_code, "sentence": error.sentence}))
"""


@pytest.fixture
def hub():
    server = HubServer()
    for access in ("open", "gated"):
        server.repositories[f"org/{access}"] = Repository({COMMIT: FILES}, {"main": COMMIT}, access)
    with server.running():
        yield server


@pytest.fixture
def fetch(hub, tmp_path):
    def fetch_from_hub(model, revision="", **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        completed = subprocess.run(
            [sys.executable, "-c", FETCH, model, revision],
            env={**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), **environment},
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return json.loads(completed.stdout), completed.stderr

    return fetch_from_hub


def test_repository_is_fetched_once_and_only_what_is_needed(fetch, hub):
    result, log = fetch("hf://org/open")
    folder = Path(result["folder"])
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "Fetched org/open in" in log
    hub.requests.clear()
    assert fetch("hf://org/open", COMMIT)[0] == result
    assert hub.requests == []


def test_a_folder_is_taken_as_it_is(fetch, tmp_path):
    assert fetch(str(tmp_path))[0] == {"folder": str(tmp_path)}


@pytest.mark.parametrize(
    ("model", "environment", "code", "words"),
    [
        ("hf://org/gated", {}, ExitCode.GATED_REPO, ("org/gated", "401")),
        ("hf://org/none", {"HF_TOKEN": TOKEN}, ExitCode.MODEL_NOT_FOUND, ("org/none",)),
        ("hf://org/open", {"HF_HUB_OFFLINE": "1"}, ExitCode.MODEL_NOT_FOUND, ("org/open", "HF_HUB_OFFLINE")),
        ("hf://not//valid//id", {}, ExitCode.MODEL_NOT_FOUND, ("org/name",)),
    ],
)
def test_failure_is_one_sentence_with_its_code(fetch, model, environment, code, words):
    result, _ = fetch(model, **environment)
    assert result["code"] == code
    assert "\n" not in result["sentence"]
    for word in words:
        assert word in result["sentence"]
