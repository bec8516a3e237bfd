"""docs/faults.md names a test for each fault, and no test of a storm is missing in it."""

import ast
import re

import pytest

from dev.paths import REPOSITORY

CLUSTER = REPOSITORY / "tests" / "cluster"
TEST = re.compile(r"`(test_\w+\.py)::(test_\w+)(?:\[([a-z0-9-]+)\])?`")


@pytest.fixture(scope="module")
def rows(document):
    return document("docs/faults.md").table("Each fault and its test")


def find_tests(path):
    return {
        node.name
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def storms():
    """The keys of STORMS in test_faults.py, which parametrize its test."""
    tree = ast.parse((CLUSTER / "test_faults.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "STORMS":
            return {key.value for key in node.value.keys}
    raise AssertionError("no STORMS")


def test_each_fault_has_a_test(rows):
    for row in rows:
        named = TEST.findall(row["test"])
        assert named, row["fault"]
        for file, test, storm in named:
            assert test in find_tests(CLUSTER / file), (row["fault"], test)
            assert not storm or storm in storms(), (row["fault"], storm)


@pytest.mark.parametrize("file", ["test_faults.py", "test_survival.py"])
def test_each_test_of_a_fault_has_a_row(rows, file):
    named = {test for row in rows for name, test, _ in TEST.findall(row["test"]) if name == file}
    assert named == find_tests(CLUSTER / file)


def test_each_storm_has_a_row(rows):
    assert {storm for row in rows for _, _, storm in TEST.findall(row["test"]) if storm} == storms()


def test_what_the_project_owes_is_listed(rows):
    faults = {row["fault"] for row in rows}
    owed = {
        *(
            "killed -9 at any point",
            "two at once",
            "lost watch",
            "410 Gone",
            "409 storm",
            "429 with Retry-After",
            "5xx",
        ),
        *("an API server that restarts", "clock skew", "an endpoint edited during a reconcile", "a child deleted"),
        *("a child owned by another", "a namespace deleted with the operator gone", "1,000 endpoints at once"),
        *("an unknown field", "an endpoint of a newer version"),
    }
    assert owed <= faults
