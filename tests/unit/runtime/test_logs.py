"""Log lines: one each, visible, JSON; and written without making anybody wait."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dedicate_runtime.logs import BackgroundHandler, JsonFormatter

PATIENCE_S = 60
STUCK = """
import logging
from dedicate_runtime.logs import configure_logging

handler = configure_logging("info")
for number in range(200_000):
    logging.getLogger("unit").info("a line", extra={"number": number})
assert handler.num_dropped > 0
print("done")
"""


def record(message="unit", **fields):
    return logging.makeLogRecord({"msg": message, "levelname": "INFO", "name": "unit", **fields})


@pytest.mark.parametrize(
    "text",
    [
        'line\nline\r\n{"message": "forged"}',
        "\x00\x1b[31m\x7f",
        "\x85\x9b31m",
        "\u2028\u2029",
        "\u202etxt.exe\u2066",
        "\ud800",
        "\u00e9\u4f60\U0001f600",
        "x" * 1_000_000,
    ],
)
@pytest.mark.parametrize("where", ["field", "message"])
def test_line_is_one_visible_line_that_says_what_was_logged(text, where):
    line = JsonFormatter().format(record(text) if where == "message" else record(field=text))
    assert json.loads(line)[where] == text
    assert all(character.isprintable() for character in line)
    assert len(line.splitlines()) == 1
    line.encode()


def test_line_of_what_json_does_not_know():
    try:
        1 / 0  # noqa: B018 - for its exception
    except ZeroDivisionError:
        line = JsonFormatter().format(record(path=Path("/x"), number=float("nan"), exc_info=sys.exc_info()))
    told = json.loads(line)
    assert (told["path"], told["number"]) == ("/x", None)
    assert "ZeroDivisionError: division by zero" in told["exception"]


@pytest.fixture
def pipe():
    """A handler that writes to a pipe, and the end where it is read."""
    reading, writing = os.pipe()
    handler = BackgroundHandler(writing, max_queued_bytes=10_000)
    handler.setFormatter(JsonFormatter())
    yield handler, reading, writing
    handler.close()


def test_lines_come_in_order(pipe):
    handler, reading, writing = pipe
    for number in range(50):
        handler.handle(record(number=number))
    handler.flush()
    os.close(writing)
    with os.fdopen(reading) as stream:
        assert [json.loads(line)["number"] for line in stream] == list(range(50))
    assert handler.num_dropped == 0


@pytest.mark.parametrize("is_blocking", [True, False])
def test_lines_beyond_the_queue_are_dropped_counted_and_told(pipe, is_blocking):
    handler, reading, writing = pipe
    os.set_blocking(writing, is_blocking)
    num_lines = 5_000  # far more than the queue and the pipe's 64 KiB hold
    for number in range(num_lines):
        handler.handle(record(number=number))
    assert 0 < handler.num_dropped < num_lines
    lines, rest = [], b""
    while not lines or lines[-1].get("number") != -1:
        # Something to be dropped or written after everything else, until a line of it comes through.
        handler.handle(record(number=-1))
        *whole, rest = (rest + os.read(reading, 65_536)).split(b"\n")
        lines += [json.loads(line) for line in whole]
    handler.flush()
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        lines += [json.loads(line) for line in (rest + stream.read()).splitlines()]
    numbers = [line["number"] for line in lines if "number" in line]
    assert [number for number in numbers if number >= 0] == sorted(set(numbers) - {-1})
    told = [line for line in lines if line["message"] == "log records were dropped"]
    assert sum(line["num_records"] for line in told) == handler.num_dropped
    assert {line["level"] for line in told} == {"warning"}


def test_reader_that_is_gone_is_given_up(pipe):
    handler, reading, _ = pipe
    os.close(reading)
    for _ in range(100):
        handler.handle(record())
    handler.flush()


def test_process_whose_log_nobody_reads_works_and_ends():
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "wb") as unread:
        done = subprocess.run(
            [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=unread, timeout=PATIENCE_S, check=True
        )
    assert done.stdout == b"done\n"
