"""Several processes: a tier that has servers of its own stays in one, and what tests tell arrives in one summary."""

from __future__ import annotations

import json
import re

import pytest

TEST = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_tells_where_it_runs(tell, request, number):
    tell("figures", "ran", f'["{request.path.parent.name}", "{request.path.stem}", {os.getpid()}]')
"""
PLUGINS = ("-p", "dev.told", "-p", "dev.tiers", "-p", "no:cacheprovider")


@pytest.fixture
def told(pytester, monkeypatch, pytestconfig):
    """Run tests of three tiers; return tier, file and process of each, in the order in which they tell it."""
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    for tier, file in (
        ("unit", "test_x"),
        ("unit", "test_y"),
        ("e2e", "test_x"),
        ("e2e", "test_y"),
        ("cluster", "test_x"),
    ):
        path = pytester.path / "tests" / tier / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEST)

    def run(*options):
        result = pytester.runpytest_subprocess("--import-mode=importlib", *PLUGINS, *options)
        result.assert_outcomes(passed=20)
        lines = [re.match(r"ran: (\[.*\])", line) for line in result.outlines]
        return [json.loads(match[1]) for match in lines if match]

    return run


def test_one_process_runs_what_is_quick_first(told):
    ran = told()
    assert [tier for tier, _, _ in ran] == ["unit"] * 8 + ["cluster"] * 4 + ["e2e"] * 8
    assert len({process for *_, process in ran}) == 1


def test_a_tier_with_servers_stays_in_one_process_of_several_and_so_does_any_other_file(told):
    ran = told("--numprocesses=2", "--dist=loadscope", "--no-loadscope-reorder")
    assert len(ran) == 20
    processes = {tier: {process for other, _, process in ran if other == tier} for tier in ("e2e", "cluster")}
    assert len(processes["e2e"]) == len(processes["cluster"]) == 1
    assert processes["e2e"] != processes["cluster"]
    for file in ("test_x", "test_y"):
        assert len({process for tier, name, process in ran if (tier, name) == ("unit", file)}) == 1
