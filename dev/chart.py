"""The chart as the demonstration and the tests use it: Helm, and what it renders."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.toolchain import HELM, build_module, find_assets
from dev.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "dedicate"

# What charts are rendered for where no cluster is asked; Helm built from its module knows no default.
KUBERNETES_VERSION = "1.34.2"
_RELEASE = "dedicate"
_NAMESPACE = "dedicate-system"


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
