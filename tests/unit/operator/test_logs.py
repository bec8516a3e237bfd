from __future__ import annotations

import json
import logging
import sys

from dedicate_operator.logs import JsonFormatter, PlainFormatter


def record(message="applied", *, exc_info=None, **fields):
    made = logging.LogRecord("dedicate_operator.x", logging.INFO, __file__, 1, message, None, exc_info)
    vars(made).update(fields)
    return made


def test_json_line_has_message_and_fields():
    entry = json.loads(JsonFormatter().format(record(kind="Service", delay_s=1.5, odd=object)))
    assert entry["message"] == "applied"
    assert entry["level"] == "info"
    assert entry["logger"] == "dedicate_operator.x"
    assert (entry["kind"], entry["delay_s"]) == ("Service", 1.5)
    assert isinstance(entry["odd"], str)


def test_exception_is_part_of_the_line():
    try:
        int("boom")
    except ValueError:
        line = JsonFormatter().format(record(exc_info=sys.exc_info()))
    assert "ValueError" in json.loads(line)["exception"]
    assert "\n" not in line


def test_plain_line_has_the_fields_behind_the_message():
    assert PlainFormatter().format(record(kind="Service")).endswith("applied kind=Service")
