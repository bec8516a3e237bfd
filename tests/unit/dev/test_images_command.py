"""A long command's output, failure and deadline."""

from __future__ import annotations

import sys
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
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    with pytest.raises(ImageError, match="had not ended"):
        run_logged([sys.executable, "-c", child], tmp_path / "log", timeout_s=0.5)
