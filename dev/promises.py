"""Which tests hold which promise of docs/promises.md, read from the tests' own source.

A promise's own tests are named `test_promise_<number>_...`; `@pytest.mark.promise(<number>)` adds others that hold it,
too. Both count only where the real thing runs: a real API server or a real node.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dev.paths import REPOSITORY

TIERS = ("cluster", "e2e")
_NAME = re.compile(r"test_promise_(\d{2})_\w+")
_HEADING = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)


@dataclass(frozen=True, order=True)
class PromiseTest:
    """One test function; `is_own`: it bears the promise's number in its name."""

    path: str
    name: str
    is_own: bool


def find_promises(page: str) -> dict[int, str]:
    """Return the promises of the document by number."""
    return {int(number): title for number, title in _HEADING.findall(page)}


def find_promise_tests(folder: Path = REPOSITORY / "tests") -> dict[int, list[PromiseTest]]:
    """Return the tests of each promise, those of its name first."""
    found: defaultdict[int, list[PromiseTest]] = defaultdict(list)
    for tier in TIERS:
        for path in sorted((folder / tier).glob("test_*.py")):
            for number, test in _read_tests(ast.parse(path.read_text()), f"tests/{tier}/{path.name}"):
                found[number].append(test)
    return {number: sorted(found[number], key=lambda test: (not test.is_own, test)) for number in sorted(found)}


def build_promise_list(tests: list[PromiseTest]) -> str:
    """Build the list of the tests of one promise, as docs/promises.md has it."""
    return "".join(f"* [`{test.name}`](../{test.path})\n" for test in tests)


def _read_tests(module: ast.Module, path: str) -> Iterator[tuple[int, PromiseTest]]:
    for function in ast.walk(module):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        own = _NAME.fullmatch(function.name)
        numbers = {_number_of(mark) for mark in function.decorator_list} | ({int(own[1])} if own else set())
        for number in sorted(numbers - {None}, key=lambda each: each or 0):
            assert number is not None
            yield number, PromiseTest(path, function.name, is_own=own is not None and int(own[1]) == number)


def _number_of(decorator: ast.expr) -> int | None:
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.promise":
        return int(ast.literal_eval(decorator.args[0]))
    return None
