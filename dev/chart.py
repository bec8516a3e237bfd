"""The chart as developers and tests use it: render it, and keep what is derived in it in step.

Derived are the copy of the CRD below `files/` and the table of values in the chart's README. `python -m dev.chart sync`
writes both, `python -m dev.chart check` names what is stale.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.toolchain import HELM, build_module, find_assets
from dev.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "dedicate"
CRD = REPOSITORY / "crds" / "dedicatedendpoints.yaml"
CRD_COPY = CHART / "files" / CRD.name

# What charts are rendered for where no cluster is asked; Helm built from its module knows no default.
KUBERNETES_VERSION = "1.34.2"
_RELEASE = "dedicate"
_NAMESPACE = "dedicate-system"
_TABLE = re.compile(r"(?<=<!-- values -->\n).*(?=<!-- /values -->)", re.DOTALL)


class ChartError(Exception):
    """Helm refused the chart or its values; the message is Helm's own."""


def find_helm() -> Path:
    """Return the path of Helm, built from its pinned module where it is not yet."""
    own = find_assets(os.environ.get("KUBEBUILDER_ASSETS"), ["helm"])
    if own:
        return Path(own["helm"])
    binary = HELM.output / "helm"
    if not binary.exists():
        build_module(HELM, "1 of 1")
    return binary


def render(values: dict[str, Any] | None = None, *arguments: str, namespace: str = _NAMESPACE) -> list[dict[str, Any]]:
    """Render the chart and return its objects in Helm's order.

    Raises:
        ChartError: the values do not fit the schema, or a template failed.
    """
    return [
        document for document in yaml.safe_load_all(render_text(values, *arguments, namespace=namespace)) if document
    ]


def render_text(values: dict[str, Any] | None = None, *arguments: str, namespace: str = _NAMESPACE) -> str:
    """Render the chart to the text that Helm would send; for Raises see `render`."""
    command = ["template", _RELEASE, str(CHART), f"--namespace={namespace}", f"--kube-version={KUBERNETES_VERSION}"]
    return run_helm([*command, "--values=-", *arguments], stdin=yaml.safe_dump(values or {}))


def run_helm(arguments: Sequence[str], *, stdin: str | None = None) -> str:
    """Run Helm and return what it printed.

    Raises:
        ChartError: it failed.
    """
    command = [str(find_helm()), *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise ChartError((result.stderr or result.stdout).strip())
    return result.stdout


def iterate_values(text: str) -> Iterator[tuple[str, Any, str]]:
    """Yield path, default and comment of each leaf of a values file; the comment is empty where there is none."""
    root = yaml.compose(text)
    assert isinstance(root, yaml.MappingNode)  # noqa: S101 - the file is ours
    yield from _iterate_leaves(root, "", text.splitlines())


def build_values_table(text: str) -> str:
    """Build the table of the chart's README from a values file."""
    rows = ["| value | default | meaning |", "|---|---|---|"]
    for path, default, comment in iterate_values(text):
        rows.append(f"| `{path}` | `{_inline(default)}` | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(rows) + "\n"


def derived_files() -> dict[Path, str]:
    """Return what each derived file should hold."""
    readme = CHART / "README.md"
    table = build_values_table((CHART / "values.yaml").read_text())
    return {CRD_COPY: CRD.read_text(), readme: _TABLE.sub(lambda _: table, readme.read_text())}


def _iterate_leaves(node: yaml.MappingNode, prefix: str, lines: list[str]) -> Iterator[tuple[str, Any, str]]:
    for key, value in node.value:
        path = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from _iterate_leaves(value, f"{path}.", lines)
        else:
            yield path, yaml.safe_load(yaml.serialize(value)), _comment_above(lines, key.start_mark.line)


def _comment_above(lines: list[str], line: int) -> str:
    """Return the comment that ends right above `line` and begins with `# --`, on one line."""
    block: list[str] = []
    for above in reversed(lines[:line]):
        text = above.strip()
        if not text.startswith("#"):
            return ""
        block.insert(0, text.lstrip("# "))
        if text.startswith("# -- "):
            return " ".join(block).removeprefix("-- ")
    return ""


def _inline(default: Any) -> str:
    return yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("...\n").strip()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m dev.chart", description=__doc__)
    parser.add_argument("command", choices=["sync", "check"])
    command = parser.parse_args().command
    stale = [path for path, text in derived_files().items() if not path.exists() or path.read_text() != text]
    if command == "check" and stale:
        names = ", ".join(str(path.relative_to(REPOSITORY)) for path in stale)
        sys.exit(f"{names}: stale; run `python -m dev.chart sync`")
    for path in stale:
        path.write_text(derived_files()[path])
        print(f"wrote {path.relative_to(REPOSITORY)}")


if __name__ == "__main__":
    main()
