"""Runs the tests of Triton's kernels where they can run: in a process whose Triton interprets, if there is no device.

Whether kernels are compiled or interpreted is settled when Triton is imported, which other tests of this tier do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="they run in this very process"
)
@pytest.mark.parametrize("name", ["attention", "fusion", "runner"])
def test_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", str(HERE / f"test_triton_{name}.py")]
    ended = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
    assert " skipped" not in ended.stdout.splitlines()[-1]
