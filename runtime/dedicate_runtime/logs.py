"""Logs as JSON lines on stderr: a constant message, and fields. A thread of its own writes them.

Whoever logs never waits for whoever reads: a pipe that nobody empties would stop the event loop, and every stream with
it. Lines beyond a bounded queue are dropped, counted, and missed aloud once there is room again.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import re
import select
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import msgspec

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_INVISIBLE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What JSON leaves as it is, and a terminal or a pager may obey: C1 controls, line ends, changes of direction."""
_MAX_QUEUED_BYTES = 4 * 1024 * 1024
"""Of lines that are not written yet; arbitrary, some seconds of lines at full load."""
_FLUSH_S = 2.0
"""Arbitrary: longer than a reader that is alive needs, short beside what a pod is given to end."""

_encode = msgspec.json.Encoder(enc_hook=str).encode


class JsonFormatter(logging.Formatter):
    """Writes one JSON object a record: time, level, logger, message, and whatever came in `extra`.

    One line and nothing but visible characters, whatever the fields hold.
    """

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            text = _encode(line).decode()
        except UnicodeEncodeError:  # a lone surrogate
            return json.dumps(line, default=str)
        return text if text.isascii() and "\x7f" not in text else _INVISIBLE.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor from a thread of its own; whoever logs never waits for it."""

    def __init__(self, descriptor: int, *, max_queued_bytes: int = _MAX_QUEUED_BYTES) -> None:
        super().__init__()
        self.num_dropped = 0
        """Records that were lost for want of room."""
        self._descriptor = descriptor
        self._max_queued_bytes = max_queued_bytes
        self._queued_bytes = 0
        self._counting = threading.Lock()
        # Bounded by `_queued_bytes`. An event is set when its turn comes, None ends the thread.
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        threading.Thread(target=self._write_lines, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self._line_of(record)
        except Exception:  # noqa: BLE001 - logging's own way with a record that cannot be formatted
            self.handleError(record)
            return
        with self._counting:
            has_room = self._queued_bytes + len(line) <= self._max_queued_bytes
            if has_room:
                self._queued_bytes += len(line)
            else:
                self.num_dropped += 1
        if has_room:
            self._lines.put(line)

    def flush(self) -> None:
        """Waits until all that was logged before is written, for at most `_FLUSH_S`."""
        turn = threading.Event()
        self._lines.put(turn)
        turn.wait(_FLUSH_S)

    def close(self) -> None:
        """Ends the thread once it has written what is queued, without waiting for it."""
        self._lines.put(None)
        super().close()

    def _line_of(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode("utf-8", "backslashreplace") + b"\n"

    def _write_lines(self) -> None:
        num_told = 0
        while (item := self._lines.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            self._write(item)
            with self._counting:
                self._queued_bytes -= len(item)
                num_lost, num_told = self.num_dropped - num_told, self.num_dropped
            if num_lost:
                self._write(self._line_of(_missing(num_lost)))

    def _write(self, line: bytes) -> None:
        """Writes all of it, however long that takes; gives up if nobody can ever read it."""
        while line:
            try:
                line = line[os.write(self._descriptor, line) :]
            except BlockingIOError:  # somebody else who has this terminal made it so
                select.select([], [self._descriptor], [])
            except OSError:
                return


def _missing(count: int) -> logging.LogRecord:
    fields = {
        "name": __name__,
        "levelno": logging.WARNING,
        "levelname": "WARNING",
        "msg": "log records were dropped",
        "num_records": count,
    }
    return logging.makeLogRecord(fields)


def configure_logging(level: str) -> BackgroundHandler:
    """Sends every logger of this process to stderr as JSON lines, from `level` on; gives who writes them."""
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("uvicorn", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
    return handler
