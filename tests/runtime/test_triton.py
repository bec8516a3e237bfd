"""Runs the tests of Triton's kernels where they can run: in a process whose Triton interprets, if there is no device.

Whether kernels are compiled or interpreted is settled when Triton is imported, which other tests of this tier do. The
interpreter takes minutes on one core, so it starts with the tier (`interpreted` in conftest.py) and is waited for here.
"""

from __future__ import annotations

import os

import pytest
import torch

DEADLINE_S = 1200


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="they run in this very process"
)
@pytest.mark.parametrize("name", ["attention", "fusion", "runner"])
def test_in_the_interpreter(interpreted, name):
    ended = interpreted[name].result(DEADLINE_S)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
    assert " skipped" not in ended.stdout.splitlines()[-1]
