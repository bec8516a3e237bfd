"""docs/promises.md: each promise has tests where the real thing runs, and pytest finds them."""

import re
import subprocess
import sys

import pytest

from dev.paths import REPOSITORY
from dev.promises import TIERS, find_promise_tests, find_promises

PROMISES = find_promises((REPOSITORY / "docs" / "promises.md").read_text())
TESTS = find_promise_tests()


def test_there_are_thirteen():
    assert list(PROMISES) == list(range(1, 14))


@pytest.mark.parametrize("number", PROMISES, ids=PROMISES.values())
def test_each_promise_has_a_test_of_its_name(number):
    assert [test for test in TESTS.get(number, []) if test.is_own]


def test_each_named_promise_exists():
    assert set(TESTS) <= set(PROMISES)


def test_their_tests_are_collected():
    """A file that pytest does not take up, or a test that a class hides, would hold nothing."""
    folders = [f"tests/{tier}" for tier in TIERS]
    command = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", "-p", "no:cacheprovider"]
    # Those that take minutes, too.
    command += ["-m", "", *folders]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    collected = {tuple(re.split(r"::|\[", line)[:2]) for line in result.stdout.splitlines() if "::" in line}
    assert {(test.path, test.name) for tests in TESTS.values() for test in tests} <= collected
