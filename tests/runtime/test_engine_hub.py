"""Fetching from a hub: a local server that speaks the hub's HTTP protocol, and a process that fetches from it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from errno import ENOSPC
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dedicate_runtime.errors import ExitCode
from dedicate_runtime.worker import hub as hub_module

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": bytes(range(256)) * 100_000,  # more than the client writes at a time
    "original/consolidated.00.pth": b"unwanted",
    "pytorch_model.bin": b"unwanted",
}
TOKEN = "hf_right"

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


class Hub(BaseHTTPRequestHandler):
    """Repository org/open is public, org/gated wants a token, anything else does not exist."""

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        path = self.path.partition("?")[0]
        self.server.paths.append(path)
        repo = next((name for name in ("org/open", "org/gated", "org/down") if f"/{name}" in path), None)
        if repo == "org/down":
            self.reply(503)
        elif repo is None:
            self.reply(401 if self.headers.get("Authorization") is None else 404, error="RepoNotFound")
        elif repo == "org/gated" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.reply(403 if self.headers.get("Authorization") else 401, error="GatedRepo")
        elif "/revision/" in path and path.rsplit("/", 1)[1] not in {"main", COMMIT}:
            self.reply(404, error="RevisionNotFound")
        elif "/tree/" in path:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": f"oid-{len(content)}"}
                for name, content in FILES.items()
            ]
            self.reply(200, json.dumps(entries).encode())
        elif path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in FILES]
            self.reply(200, json.dumps({"id": repo, "sha": COMMIT, "siblings": siblings}).encode())
        else:
            self.send_file(path)

    def send_file(self, path):
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        content = FILES[name]
        if self.server.tears and name == "model.safetensors" and self.command == "GET":
            self.server.tears -= 1
            self.reply(200, content, name=name, cut=len(content) // 2)
        else:
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            self.server.ranges.append(start)
            self.reply(206 if start else 200, content[start:], name=name)

    def reply(self, status, content=b"", *, error=None, name=None, cut=None):
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        if name:
            self.send_header("ETag", f'"oid-{len(FILES[name])}"')
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths, server.ranges, server.tears = [], [], 0
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def fetch(hub, tmp_path):
    def fetch_from_hub(model, revision="", **environment):
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        completed = subprocess.run(
            [sys.executable, "-c", FETCH, model, revision],
            env={
                **inherited,
                "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_XET": "1",
                **environment,
            },
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
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "model.safetensors"}
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert "Fetched org/open in" in log
    hub.paths.clear()
    assert fetch("hf://org/open", COMMIT)[0] == result
    assert not [path for path in hub.paths if "resolve" in path]


def test_torn_download_is_resumed(fetch, hub):
    hub.tears = 1
    result, _ = fetch("hf://org/open")
    assert "folder" in result
    assert max(hub.ranges) > 0


def test_gated_repository_opens_with_its_token(fetch):
    assert "folder" in fetch("hf://org/gated", HF_TOKEN=TOKEN)[0]


@pytest.mark.parametrize(
    ("model", "revision", "environment", "code", "words"),
    [
        ("hf://org/gated", "", {}, ExitCode.GATED_REPO, ("org/gated", "401")),
        ("hf://org/gated", "", {"HF_TOKEN": "hf_wrong"}, ExitCode.GATED_REPO, ("org/gated", "403")),
        ("hf://org/none", "", {"HF_TOKEN": TOKEN}, ExitCode.MODEL_NOT_FOUND, ("org/none",)),
        ("hf://org/none", "", {}, ExitCode.GATED_REPO, ("org/none", "does not exist")),
        ("hf://org/open", "v9", {}, ExitCode.MODEL_NOT_FOUND, ("org/open", "v9")),
        ("hf://not//valid//id", "", {}, ExitCode.MODEL_NOT_FOUND, ("org/name",)),
        ("hf://org/down", "", {}, ExitCode.HUB_UNREACHABLE, ("org/down",)),
        (
            "hf://org/open",
            "",
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            ExitCode.HUB_UNREACHABLE,
            ("org/open", "127.0.0.1:9"),
        ),
        ("hf://org/open", "", {"HF_HUB_OFFLINE": "1"}, ExitCode.MODEL_NOT_FOUND, ("org/open", "HF_HUB_OFFLINE")),
    ],
)
def test_failure_is_one_sentence_with_its_code(fetch, model, revision, environment, code, words):
    result, _ = fetch(model, revision, **environment)
    assert result["code"] == code
    assert "\n" not in result["sentence"]
    for word in words:
        assert word in result["sentence"]


def test_full_disk_is_told_whatever_it_is_wrapped_in():
    error = RuntimeError("the write failed")
    error.__cause__ = OSError(ENOSPC, "No space left on device")
    explained = hub_module._explain(error, "org/open", None)
    assert explained.exit_code is ExitCode.DISK_FULL
    assert "org/open" in explained.sentence
