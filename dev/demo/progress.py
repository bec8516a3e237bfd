"""Say what is done, how far it is and how long it has taken: one line a step, and a log of everything."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO

Say = Callable[[str], None]

# How often a step that says nothing new is shown to be alive: on a terminal in place, elsewhere as a line.
_TERMINAL_INTERVAL_S = 1.0
_PLAIN_INTERVAL_S = 20.0


class Progress:
    """Steps of one run, on a stream and in a log file that is begun anew."""

    def __init__(self, log: Path, stream: TextIO = sys.stderr) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self._sink = log.open("w", buffering=1)
        self._stream = stream
        self._in_place = stream.isatty()
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sink.close()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @contextmanager
    def step(self, title: str) -> Iterator[Say]:
        """Show a step for as long as the block runs; what the block says is its latest detail."""
        begun = time.monotonic()
        detail = [""]
        ended = threading.Event()

        def say(line: str) -> None:
            detail[0] = line.strip()
            self._record(f"{title}: {detail[0]}")
            self._show(title, detail[0], begun)

        def beat() -> None:
            while not ended.wait(_TERMINAL_INTERVAL_S if self._in_place else _PLAIN_INTERVAL_S):
                self._show(title, detail[0], begun)

        ticker = threading.Thread(target=beat, daemon=True)
        self._record(f"{title}: begun")
        self._show(title, "", begun)
        ticker.start()
        try:
            yield say
        except BaseException as error:
            self._finish(f"{title}: failed after {time.monotonic() - begun:.0f} s", error)
            raise
        else:
            self._finish(f"{title}: done in {time.monotonic() - begun:.1f} s")
        finally:
            ended.set()
            ticker.join()

    def _show(self, title: str, detail: str, begun: float) -> None:
        line = f"{title}{': ' if detail else ''}{detail} ({time.monotonic() - begun:.0f} s)"
        with self._lock:
            self._stream.write(f"\r\033[K    {line[:110]}" if self._in_place else f"    {line}\n")
            self._stream.flush()

    def _finish(self, line: str, error: BaseException | None = None) -> None:
        self._record(line if error is None else f"{line}: {error}")
        with self._lock:
            self._stream.write(f"\r\033[K==> {line}\n" if self._in_place else f"==> {line}\n")
            self._stream.flush()

    def _record(self, line: str) -> None:
        self._sink.write(f"{self.elapsed_s:8.1f} {line}\n")
