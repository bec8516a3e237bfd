"""Run a long command: its output goes to a log, what it says of its progress to a person."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from dev.images.errors import ImageError

_TAIL_LINES = 6


def run_logged(
    command: Sequence[str | Path],
    log: Path,
    *,
    timeout_s: float,
    on_line: Callable[[str], None] = lambda _line: None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Return once the command has ended with 0; the log receives each line, and so does `on_line`.

    Raises:
        ImageError: it failed, could not be started or ran out of time; nothing of it is left running.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    name = Path(command[0]).name if Path(command[0]).name != "unshare" else Path(command[2]).name
    with log.open("a") as sink:
        sink.write(f"$ {' '.join(map(str, command))}\n")
        sink.flush()
        try:
            process = subprocess.Popen(
                command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError:
            raise ImageError(f"{name} is not installed.") from None
        timer = threading.Timer(timeout_s, _end_group, [process.pid])
        timer.start()
        tail: list[str] = []
        assert process.stdout is not None  # asked for above
        try:
            for line in process.stdout:
                sink.write(line)
                sink.flush()
                tail = [*tail, line.rstrip()][-_TAIL_LINES:]
                on_line(line)
            status = process.wait()
        finally:
            timed_out = not timer.is_alive()
            timer.cancel()
            if process.poll() is None:
                _end_group(process.pid)
                process.wait()
            process.stdout.close()
    if timed_out:
        raise ImageError(f"{name} had not ended after {timeout_s:.0f} s; see {log}.")
    if status != 0:
        raise ImageError("\n  ".join([f"{name} failed; its log, {log}, ends with:", *tail]))


def _end_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
