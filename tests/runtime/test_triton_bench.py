"""The GPU bench runs whole: on the CPU, with a tiny model and interpreted kernels, from a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_gpu_bench_runs_on_the_cpu(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--tiny", "--no-peers", "--out", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    parts = json.loads((tmp_path / "bench-gpu.json").read_text())
    assert not [name for name, part in parts.items() if isinstance(part, dict) and "error" in part]
    assert all("passed" in result for result in parts["checks"].values())
    assert {"about", "ceilings", "ours", "prefill", "decode 1", "decode 3", "whole"} <= set(parts)
    for batch in (1, 3):
        assert parts[f"decode {batch}"]["tokens_per_s"] > 0
    assert "roofline" in ended.stdout


def test_without_a_device_it_says_so(tmp_path):
    program = "import sys, torch; torch.cuda.is_available = lambda: False; import runpy; sys.argv = ['bench.gpu']; "
    program += "runpy.run_module('bench.gpu', run_name='__main__')"
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 2
    assert "--device cpu" in ended.stderr
