"""`make serve` as a person uses it: start it, paste what it prints, press Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def served(tmp_path):
    """Run the command; gives the process and what it printed up to the invitation to end it."""
    environment = {**os.environ, "KEY": "sk-pasted", "DEDICATE": "pasted", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        # A shell's background job ignores SIGINT, and so would its children; a person's terminal does not.
        ["env", "--default-signal=INT", sys.executable, "-m", "dev.serve"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if line.startswith("Ctrl-C"):
            break
    yield process, lines
    if process.poll() is None:
        process.terminate()  # not killed: it has a runtime to take with it
    process.wait(90)
    process.stdout.close()


def test_pasted_lines_work_and_nothing_is_left(served, tmp_path):
    process, lines = served
    commands = [line for line in lines if line.startswith("curl")]
    assert len(commands) == 2, "\n".join(lines)
    answers = [
        subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=300, check=True).stdout
        for line in commands
    ]
    assert answers[0].endswith("data: [DONE]\n\n")
    assert "Paris" in answers[1]
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not list(tmp_path.glob("dedicate-serve-*"))
