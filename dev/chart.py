"""The chart as the demonstration and the tests use it: Helm, and what it renders."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

import yaml

from dev.cluster.toolchain import obtain_helm
from dev.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "dedicate"

# What charts are rendered for where no cluster is asked; Helm built from its module knows no default.
KUBERNETES_VERSION = "1.34.2"
_RELEASE = "dedicate"
_NAMESPACE = "dedicate-system"


class ChartError(Exception):
    """Helm refused the chart or its values; the message is Helm's own."""


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
    command = [obtain_helm(), *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=60, check=False)
    if result.returncode != 0:
        raise ChartError((result.stderr or result.stdout).strip())
    return result.stdout
