"""What the chart renders for each set of values, whole. A change of it is read in the diff of golden/.

`UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/unit/chart/test_golden.py` writes it anew. The definition, dashboards
and alerts are copies of files that have tests of their own, and are left out.
"""

import os
from pathlib import Path

import pytest
import yaml

from dev.chart import render
from tests.unit.chart.value_sets import VALUE_SETS

GOLDEN = Path(__file__).parent / "golden"


def render_golden(values):
    objects = []
    for item in render(values):
        if item["kind"] == "CustomResourceDefinition":
            continue
        if item["kind"] == "ConfigMap":
            item["data"] = dict.fromkeys(item["data"], "...")
        if item["kind"] == "PrometheusRule":
            item["spec"]["groups"] = [group["name"] for group in item["spec"]["groups"]]
        objects.append(item)
    return yaml.safe_dump_all(objects, width=120)


@pytest.mark.parametrize("name", VALUE_SETS)
def test_render_is_the_golden_one(name):
    path, rendered = GOLDEN / f"{name}.yaml", render_golden(VALUE_SETS[name])
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(rendered)
    assert rendered == path.read_text(), "read what changed; if it is meant, UPDATE_GOLDEN=1 writes it anew"


def test_nothing_golden_is_left_over():
    assert {path.stem for path in GOLDEN.iterdir()} == VALUE_SETS.keys()
