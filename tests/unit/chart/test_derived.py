"""What is derived in the chart is in step with where it comes from."""

import pytest
import yaml

from dev.chart import CHART, render
from dev.derived import CRD, CRD_COPY, build_derived, build_values_table
from dev.paths import REPOSITORY


@pytest.mark.parametrize("path", list(build_derived()), ids=lambda path: path.name)
def test_derived_files_are_fresh(path):
    assert path.read_text() == build_derived()[path], "stale; run `python -m dev.derived sync`"


def test_the_definition_is_copied_byte_for_byte():
    assert CRD_COPY.read_bytes() == CRD.read_bytes()


def test_the_rendered_definition_is_the_source_with_labels():
    (rendered,) = (item for item in render() if item["kind"] == "CustomResourceDefinition")
    source = yaml.safe_load(CRD.read_text())
    assert rendered["spec"] == source["spec"]
    assert rendered["metadata"]["name"] == source["metadata"]["name"]


def test_the_definition_fits():
    assert len(CRD.read_bytes()) < 256 * 1024


def test_the_table_reads_nested_values_and_long_comments():
    table = build_values_table("a:\n  # -- First line,\n  # second line.\n  b: [1]\n# no marker\nc: 1\n")
    assert table.splitlines()[2:] == ["| `a.b` | `[1]` | First line, second line. |", "| `c` | `1` |  |"]


def test_versions_agree():
    project = (REPOSITORY / "pyproject.toml").read_text()
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in project
    assert chart["version"] == chart["appVersion"]
