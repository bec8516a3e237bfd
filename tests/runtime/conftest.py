"""What runs beside the tests of this tier; the live runtime itself comes from dev/live_runtime.py."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session", autouse=True)
def interpreted(request):
    """Run what `test_triton.py` waits for, beside the other tests of the tier and behind them; name to its future.

    Only what was selected is started, one after the other; what nobody waited for is ended with the session.
    """
    wanted = [item.callspec.params["name"] for item in request.session.items if "test_in_the_interpreter" in item.name]
    running: list[subprocess.Popen[str]] = []

    def run(name):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", str(HERE / f"test_triton_{name}.py")]
        with subprocess.Popen(
            ["nice", *command],
            cwd=HERE.parents[1],
            env={**os.environ, "TRITON_INTERPRET": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            running[:] = [process]
            stdout, stderr = process.communicate()
        return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)

    with ThreadPoolExecutor(max_workers=1) as executor:
        yield {name: executor.submit(run, name) for name in wanted}
        executor.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()
