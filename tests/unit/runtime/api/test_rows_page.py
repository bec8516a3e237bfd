"""docs/api.md: each of its rows has tests, and its tables are those of the wire types."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from dedicate_runtime.api.schemas import ChatCompletionRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from dev.derived import API, build_api_page

TESTS = Path(__file__).parents[3]
PAGE = API.read_text()


def rows_of(title):
    """Give the first cells of a section's table."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [cell.strip("`") for cell in re.findall(r"^\| (.+?) \|", section, re.MULTILINE)][1:]


def marked_rows(file):
    """Find the rows that the tests of a file name: arguments of `pytest.mark.row`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.row":
            yield ast.literal_eval(node.args[0])


def test_every_row_has_a_test_and_every_such_test_a_row():
    promised = [f"specification: {name}" for name in rows_of("The specification")] + rows_of("Rules")
    files = [*TESTS.glob("unit/runtime/api/test_rows_*.py"), *TESTS.glob("runtime/test_http_rows*.py")]
    assert len(promised) == len(set(promised)) > 30
    assert {row for file in files for row in marked_rows(file)} == set(promised)


def test_tables_are_those_of_the_wire_types():
    assert build_api_page(PAGE) == PAGE


@pytest.mark.parametrize("wire", [ChatCompletionRequest, CompletionRequest, TokenizeRequest, DetokenizeRequest])
def test_every_parameter_is_described_with_its_bounds(wire):
    """Bounds in words of their own, `ge` for `minimum`, would say nothing to a reader of the OpenAPI page."""
    for name, field in wire.model_json_schema()["properties"].items():
        assert field["description"].endswith("."), name
        forms = field.get("anyOf", [field])
        assert not {"ge", "gt", "le", "lt"} & {key for form in forms for key in form}, name
