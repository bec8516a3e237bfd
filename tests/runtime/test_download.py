"""The download's own process against a server that speaks the hub's protocol: every way in which it can go or fail."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from dedicate_runtime.errors import ExitCode
from tests.hub_server import TOKEN, Faults, HubServer, Repository, blob_of

FIRST, SECOND = "1" * 40, "2" * 40
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: more than is read at a time, more than a socket holds
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "modeling.py": b"pass\n",
    "model-1.safetensors": WEIGHTS,
    "model-2.safetensors": WEIGHTS[::-1],
    "original/consolidated.00.pth": b"unwanted",
    "pytorch_model.bin": b"unwanted",
}
WANTED = {"config.json", "tokenizer.json", "model-1.safetensors", "model-2.safetensors"}
TOTAL = sum(len(FILES[name]) for name in WANTED)
DEADLINE_S = 120


@pytest.fixture
def hub():
    server = HubServer()
    moved = FILES | {"config.json": b'{"model_type": "llama", "moved": true}'}
    for access in ("open", "gated", "private"):
        server.repositories[f"org/{access}"] = Repository({FIRST: FILES, SECOND: moved}, {"main": FIRST}, access)
    with server.running():
        yield server


class Download:
    """One process; `outcome` waits for its end."""

    def __init__(self, hub, folder, model, *options, **environment):
        folder.mkdir(exist_ok=True)
        self.report = folder / "report"
        self.link = folder / "model"
        self.port = _free_port()
        self.cache = folder.parent / "home" / "hub"
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        arguments = ["--model", model, "--link", str(self.link), "--failure-file", str(self.report)]
        arguments += ["--host", "127.0.0.1", "--management-port", str(self.port)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dedicate_runtime.download", *arguments, *options],
            env={**inherited, "HF_ENDPOINT": hub.url, "HF_HOME": str(folder.parent / "home"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def outcome(self, deadline_s=DEADLINE_S):
        """The exit code and what was written for the operator."""
        self.log, _ = self.process.communicate(timeout=deadline_s)
        text = self.report.read_text()
        assert text.count("\n") == 1, text
        return self.process.returncode, text.strip()

    def succeed(self):
        code, text = self.outcome()
        assert code == 0, self.log
        return json.loads(text)

    def progress(self):
        return httpx.get(f"http://127.0.0.1:{self.port}/progress", trust_env=False).json()

    def await_progress(self, is_reached):
        ends = time.monotonic() + DEADLINE_S
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.outcome()
            try:
                seen = self.progress()
            except httpx.HTTPError:
                seen = None
            if seen is not None and is_reached(seen):
                return seen
            threading.Event().wait(0.05)
        raise AssertionError(seen)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start(hub, tmp_path):
    """Start downloads into one cache; whatever still runs at the end is killed."""
    with ExitStack() as stack:
        count = iter(range(100))

        def start(model="hf://org/open", *options, **environment):
            download = Download(hub, tmp_path / f"pod-{next(count)}", model, *options, **environment)
            stack.callback(download.process.communicate)
            stack.callback(download.process.kill)
            return download

        yield start


def test_the_whole_model_is_behind_the_link_and_only_what_is_needed(start, hub):
    download = start()
    assert download.succeed() == {"commit": FIRST, "bytes": TOTAL}
    assert {path.name for path in download.link.iterdir()} == WANTED
    for name in WANTED:
        assert (download.link / name).read_bytes() == FILES[name]
    # The layout of the hub's own client, so that each finds what the other has fetched.
    folder = download.cache / "models--org--open"
    assert (folder / "refs/main").read_text() == FIRST
    assert {path.name for path in (folder / "blobs").iterdir()} == {blob_of(name, FILES[name]) for name in WANTED}
    assert download.link.resolve() == (folder / "snapshots" / FIRST).resolve()


def test_the_server_of_these_tests_is_one_to_the_hubs_own_client(hub, tmp_path):
    """Else it could be wrong in the same way as the download is."""
    code = "import huggingface_hub as h, sys; print(h.snapshot_download('org/gated', ignore_patterns='original/*'))"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    folder = Path(found.stdout.strip())
    assert folder.name == FIRST
    for name in WANTED:
        assert (folder / name).read_bytes() == FILES[name]


def test_the_hubs_own_client_finds_it(start):
    download = start()
    download.succeed()
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import huggingface_hub as h; print(h.snapshot_download('org/open', allow_patterns='*.json'))",
        ],
        env={**os.environ, "HF_HOME": str(download.cache.parent), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == str(download.link.resolve())


def test_code_is_fetched_where_it_may_run(start):
    download = start("hf://org/open", "--trust-remote-code")
    download.succeed()
    assert {path.name for path in download.link.iterdir()} == WANTED | {"modeling.py"}


def test_what_is_cached_asks_the_hub_for_nothing(start, hub):
    start("hf://org/open", "--pin", "uid").succeed()
    hub.requests.clear()
    assert start("hf://org/open", "--pin", "uid").succeed()["commit"] == FIRST
    assert hub.requests == []


def test_a_cut_connection_is_taken_up_where_it_ended(start, hub):
    hub.faults = Faults(cuts={"model-1.safetensors": [len(WEIGHTS) // 2, 1000]})
    download = start()
    download.succeed()
    assert hub.starts("model-1.safetensors") == [0, len(WEIGHTS) // 2, len(WEIGHTS) // 2 + 1000]
    assert (download.link / "model-1.safetensors").read_bytes() == WEIGHTS


def test_a_killed_download_is_taken_up_where_it_ended(start, hub):
    hub.faults = Faults(released=threading.Event())
    first = start()
    first.await_progress(lambda seen: seen["downloadedBytes"] > TOTAL // 3)
    first.process.kill()
    first.process.wait()
    hub.faults.released.set()
    hub.faults = Faults()
    second = start()
    second.succeed()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        assert hub.starts(name)[0] == 0
        assert hub.starts(name)[1] > 0
        assert (second.link / name).read_bytes() == FILES[name]
    assert not list((second.cache / "models--org--open/blobs").glob("*.incomplete"))


def test_a_hub_without_ranges_is_asked_from_the_beginning(start, hub):
    hub.faults = Faults(cuts={"model-1.safetensors": [len(WEIGHTS) // 2]}, knows_no_ranges=True)
    download = start()
    download.succeed()
    assert (download.link / "model-1.safetensors").read_bytes() == WEIGHTS


def test_the_token_goes_to_the_hub_and_not_to_the_content_network(start, hub):
    start("hf://org/gated", HF_TOKEN=TOKEN).succeed()
    assert all(item.has_token for item in hub.requests if not item.is_content)
    assert [item for item in hub.requests if item.is_content]
    assert not any(item.has_token for item in hub.requests if item.is_content)


def test_ten_processes_download_once(start, hub):
    hub.faults = Faults(bytes_per_s=5e6)
    downloads = [start("hf://org/open", "--pin", "uid") for _ in range(10)]
    for download in downloads:
        assert download.succeed()["commit"] == FIRST
        assert (download.link / "model-2.safetensors").read_bytes() == FILES["model-2.safetensors"]
    assert {name: hub.count_downloads(name) for name in WANTED} == dict.fromkeys(WANTED, 1)
    assert sum("Waiting for" in download.log for download in downloads) >= 1


def test_who_waits_shows_how_far_the_other_is_and_takes_over_when_it_is_killed(start, hub):
    hub.faults = Faults(released=threading.Event())
    first = start()
    first.await_progress(lambda seen: seen["downloadedBytes"] > TOTAL // 3)
    second = start()
    seen = second.await_progress(lambda seen: seen["stage"] == "waiting" and seen["downloadedBytes"] > 0)
    assert seen["totalBytes"] == TOTAL
    first.process.kill()
    hub.faults.released.set()
    second.succeed()
    assert (second.link / "model-1.safetensors").read_bytes() == WEIGHTS


def test_progress_is_told_while_it_downloads(start, hub):
    hub.faults = Faults(released=threading.Event())
    download = start()
    seen = download.await_progress(lambda seen: seen["stage"] == "downloading" and seen["downloadedBytes"] > 0)
    assert seen == {
        "stage": "downloading",
        "downloadedBytes": seen["downloadedBytes"],
        "totalBytes": TOTAL,
        "trouble": None,
    }
    assert httpx.get(f"http://127.0.0.1:{download.port}/else", trust_env=False).status_code == 404
    hub.faults.released.set()
    download.succeed()


@pytest.mark.parametrize("name", ["config.json", "model-1.safetensors"])
def test_what_arrives_corrupt_is_fetched_again(start, hub, name):
    hub.faults.corrupt[name] = 1
    download = start()
    download.succeed()
    assert (download.link / name).read_bytes() == FILES[name]


def test_what_arrives_corrupt_again_is_told_and_not_taken_in(start, hub):
    hub.faults.corrupt["model-1.safetensors"] = 2
    download = start()
    code, sentence = download.outcome()
    assert code == ExitCode.CORRUPT_FILE
    assert "model-1.safetensors" in sentence
    assert not (download.cache / "models--org--open/blobs" / blob_of("model-1.safetensors", WEIGHTS)).exists()


@pytest.mark.parametrize("options", [(), ("--verify", "all")])
def test_a_file_that_changed_in_the_cache_is_found_and_fetched_anew(start, hub, options):
    first = start()
    first.succeed()
    path = (first.link / "model-1.safetensors").resolve()
    stat = path.stat()
    path.write_bytes(WEIGHTS[:-1] + b"x")
    if options:
        # As a disk's fault would: neither size nor time shows it.
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hub.requests.clear()
    second = start("hf://org/open", *options)
    second.succeed()
    assert (second.link / "model-1.safetensors").read_bytes() == WEIGHTS
    assert hub.count_downloads("model-1.safetensors") == 1
    assert hub.count_downloads("model-2.safetensors") == 0


def test_a_cache_that_another_tool_filled_is_verified_and_used(start, hub):
    first = start()
    first.succeed()
    for path in (first.cache / ".dedicate").rglob("*.json"):
        path.unlink()
    (first.link / "model-1.safetensors").resolve().write_bytes(WEIGHTS[:-1])
    hub.requests.clear()
    start().succeed()
    assert hub.count_downloads("model-1.safetensors") == 1
    assert hub.count_downloads("model-2.safetensors") == 0


def test_a_moved_branch_is_not_followed(start, hub):
    assert start("hf://org/open", "--pin", "uid").succeed()["commit"] == FIRST
    hub.repositories["org/open"].refs["main"] = SECOND
    assert start("hf://org/open", "--pin", "uid").succeed()["commit"] == FIRST
    assert start("hf://org/open", "--pin", "other").succeed()["commit"] == SECOND
    assert start("hf://org/open", "--pin", "uid", "--revision", SECOND).succeed()["commit"] == SECOND


def test_the_commit_that_the_operator_pinned_wins(start, hub, tmp_path):
    pinned = tmp_path / "commit"
    options = ("--pin", "uid", "--pinned-commit-file", str(pinned))
    assert start("hf://org/open", *options).succeed()["commit"] == FIRST
    pinned.write_text(f"{SECOND}\n")
    download = start("hf://org/open", *options)
    assert download.succeed()["commit"] == SECOND
    assert b"moved" in (download.link / "config.json").read_bytes()
    # Only what differs was fetched.
    assert hub.count_downloads("model-1.safetensors") == 1


def test_without_the_hub_what_is_pinned_is_served(start, hub):
    start("hf://org/open", "--pin", "uid").succeed()
    gone = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert start("hf://org/open", "--pin", "uid", **gone).succeed()["commit"] == FIRST
    assert start("hf://org/open", "--pin", "uid", HF_HUB_OFFLINE="1").succeed()["commit"] == FIRST
    # Not pinned by this endpoint, but the cache knows where the branch was.
    assert start("hf://org/open", "--pin", "new", HF_HUB_OFFLINE="1").succeed()["commit"] == FIRST


def test_a_hub_that_comes_back_is_waited_for(start, hub):
    hub.faults = Faults(status=503, retry_after="1")
    download = start()
    seen = download.await_progress(lambda seen: seen["trouble"])
    assert "503" in seen["trouble"]
    hub.faults = Faults()
    download.succeed()


@pytest.mark.parametrize(
    ("model", "options", "environment", "code", "words"),
    [
        (
            "hf://org/gated",
            (),
            {},
            ExitCode.GATED_REPO,
            ("org/gated", "401", "no token"),
        ),
        ("hf://org/gated", (), {"HF_TOKEN": "wrong"}, ExitCode.GATED_REPO, ("org/gated", "403", "accepted its terms")),
        ("hf://org/private", (), {}, ExitCode.UNAUTHORIZED, ("org/private", "401", "does not exist")),
        ("hf://org/none", (), {"HF_TOKEN": TOKEN}, ExitCode.MODEL_NOT_FOUND, ("no repository org/none",)),
        ("hf://org/open", ("--revision", "v9"), {}, ExitCode.MODEL_NOT_FOUND, ("org/open", "revision v9")),
        ("hf://org/open", ("--revision", "9" * 40), {}, ExitCode.MODEL_NOT_FOUND, ("org/open", "9" * 40)),
        ("hf://org/open", ("--max-cache-bytes", "1000000"), {}, ExitCode.DISK_FULL, ("10.2 MB", "1.0 MB at most")),
        ("hf://org/open", (), {"HF_HUB_OFFLINE": "1"}, ExitCode.MODEL_NOT_FOUND, ("org/open", "HF_HUB_OFFLINE")),
        (
            "hf://org/open",
            ("--patience-seconds", "1"),
            {"HF_ENDPOINT": "http://127.0.0.1:9"},
            ExitCode.HUB_UNREACHABLE,
            ("org/open", "127.0.0.1:9", "refused"),
        ),
        ("hf://org", (), {}, ExitCode.INVALID_ARGUMENTS, ("--model",)),
        ("hf://org/open", ("--patience-seconds", "x"), {}, ExitCode.INVALID_ARGUMENTS, ("--patience-seconds",)),
        ("hf://org/open", ("--no-such-option",), {}, ExitCode.INVALID_ARGUMENTS, ("--no-such-option",)),
    ],
)
def test_a_failure_is_one_sentence_with_its_code(start, model, options, environment, code, words):
    got, sentence = start(model, *options, **environment).outcome()
    assert got == code, sentence
    for word in words:
        assert word in sentence


def test_a_hub_that_stays_down_is_told_with_its_answer(start, hub):
    hub.faults = Faults(status=503)
    code, sentence = start("hf://org/open", "--patience-seconds", "1").outcome()
    assert code == ExitCode.HUB_UNREACHABLE
    assert "503" in sentence


def test_sigterm_ends_it_at_once_and_what_was_fetched_stays(start, hub):
    hub.faults = Faults(released=threading.Event())
    download = start()
    download.await_progress(lambda seen: seen["downloadedBytes"] > TOTAL // 3)
    download.process.send_signal(signal.SIGTERM)
    assert download.process.wait(timeout=30) == 128 + signal.SIGTERM
    left = list(Path(download.cache, "models--org--open/blobs").glob("*.incomplete"))
    assert sum(path.stat().st_size for path in left) > TOTAL // 4


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 8 MB where the cache is."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "home"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(start, hub, small_disk):
    code, sentence = start().outcome()
    assert code == ExitCode.DISK_FULL
    assert "needs 10.2 MB more" in sentence
    assert "8.4 MB free" in sentence
    assert not [item for item in hub.requests if item.is_content]


def test_a_disk_that_others_fill_meanwhile_is_told(start, hub, small_disk):
    hub.repositories["org/open"].commits[FIRST] = {"config.json": b"{}", "model.safetensors": WEIGHTS}
    hub.faults = Faults(released=threading.Event())
    download = start()
    download.await_progress(lambda seen: seen["downloadedBytes"] > len(WEIGHTS) // 3)
    (small_disk / "others").write_bytes(bytes(5 * 2**20))
    hub.faults.released.set()
    code, sentence = download.outcome()
    assert code == ExitCode.DISK_FULL
    assert "is full" in sentence
    assert "MB more" in sentence
