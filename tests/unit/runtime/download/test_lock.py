"""The lock between processes is tested in tests/runtime; here is what a live process cannot be made to do."""

from __future__ import annotations

import errno
import json
import threading

import pytest

from dedicate_runtime.download import lock as lock_module
from dedicate_runtime.download.lock import CacheLock


def beat_file(folder):
    return folder / "beats" / "name.json"


def write_beat(folder, **fields):
    beat_file(folder).parent.mkdir(parents=True, exist_ok=True)
    beat_file(folder).write_text(json.dumps(fields))


@pytest.fixture
def held_elsewhere(monkeypatch):
    """A lock that another machine holds, and never gives back."""

    def refuse(*_):
        raise BlockingIOError(errno.EAGAIN, "held")

    monkeypatch.setattr(lock_module.fcntl, "lockf", refuse)


def test_a_holder_that_is_silent_for_long_is_not_waited_for(tmp_path, held_elsewhere, caplog):
    write_beat(tmp_path, holder="gone", beat=7, downloadedBytes=1, totalBytes=2)
    shown = []
    with CacheLock(tmp_path, "name", silence_s=0.6).hold(dict, shown.append):
        pass
    assert shown == [{"holder": "gone", "beat": 7, "downloadedBytes": 1, "totalBytes": 2}]
    assert "silent" in caplog.text


def test_a_holder_that_beats_is_waited_for(tmp_path, held_elsewhere):
    ended, shown = threading.Event(), []

    def beat():
        for count in range(8):
            write_beat(tmp_path, beat=count)
            ended.wait(0.3)

    thread = threading.Thread(target=beat)
    thread.start()
    with CacheLock(tmp_path, "name", silence_s=0.9).hold(dict, lambda seen: shown.append(seen.get("beat"))):
        assert not thread.is_alive()
    thread.join()
    assert shown[-1] == 7


def test_without_locks_a_beat_keeps_others_out(tmp_path, monkeypatch):
    def lack(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock_module.fcntl, "lockf", lack)
    entered = threading.Event()

    def enter():
        with CacheLock(tmp_path, "name").hold(dict, lambda _: None):
            entered.set()

    with CacheLock(tmp_path, "name").hold(dict, lambda _: None):
        beat = beat_file(tmp_path)
        while not beat.exists():
            entered.wait(0.01)
        thread = threading.Thread(target=enter)
        thread.start()
        assert not entered.wait(1.5)
    thread.join(timeout=30)
    assert entered.is_set()
    assert not beat_file(tmp_path).exists()
