"""A long command's output, failure and deadline."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from dev.images.command import run_logged
from dev.images.errors import ImageError


def test_each_line_goes_to_the_log_and_to_the_listener(tmp_path: Path) -> None:
    lines: list[str] = []
    log = tmp_path / "logs" / "build.log"
    run_logged([sys.executable, "-c", "print('one'); print('two')"], log, timeout_s=60, on_line=lines.append)
    assert lines == ["one\n", "two\n"]
    assert log.read_text().endswith("one\ntwo\n")


def test_a_failure_names_the_log_and_shows_its_end(tmp_path: Path) -> None:
    log = tmp_path / "build.log"
    with pytest.raises(ImageError, match="no space") as caught:
        run_logged([sys.executable, "-c", "import sys; sys.exit('no space')"], log, timeout_s=60)
    assert str(log) in str(caught.value)


def test_a_program_that_is_missing_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no-such-program is not installed"):
        run_logged(["no-such-program"], tmp_path / "log", timeout_s=60)


def test_a_command_that_does_not_end_is_ended_with_all_its_children(tmp_path: Path) -> None:
    pids: list[str] = []
    # The child holds no end of the pipe that would be waited for.
    command = ["sh", "-c", "sleep 600 >/dev/null 2>&1 & echo $!; wait"]
    with pytest.raises(ImageError, match="had not ended"):
        run_logged(command, tmp_path / "log", timeout_s=1, on_line=pids.append)
    (pid,) = pids
    deadline = time.monotonic() + 30
    while _is_running(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _is_running(int(pid))


def _is_running(pid: int) -> bool:
    """Tell whether there is such a process; one that nobody has collected yet has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
