"""Manifests that projects ship inside their Go modules, such as definitions of their resources; pinned by hash."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from dev.cluster.errors import ClusterError
from dev.cluster.toolchain import check_go


@dataclass(frozen=True)
class ManifestModule:
    """A module by its path and version; `checksum` is go.sum's of its files."""

    path: str
    version: str
    checksum: str


PROMETHEUS_OPERATOR = ManifestModule(
    "github.com/prometheus-operator/prometheus-operator",
    "v0.92.1",
    "h1:rHWuFo6SVya4FBSCNg2DCzyc4xAv54zk3eDTzp5mQZc=",
)
_MONITORS = ("podmonitors", "prometheusrules", "servicemonitors")


def obtain_folder(module: ManifestModule) -> Path:
    """Return the folder with the module's files, fetched where they are not yet.

    Raises:
        ClusterError: it cannot be fetched, or is not what was pinned.
    """
    check_go()
    command = ["go", "mod", "download", "-json", f"{module.path}@{module.version}"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd="/")
    told = json.loads(result.stdout) if result.stdout.startswith("{") else {}
    if result.returncode != 0 or "Error" in told:
        raise ClusterError(f"{module.path} cannot be fetched: {told.get('Error') or result.stderr.strip()}")
    if told["Sum"] != module.checksum:
        raise ClusterError(f"{module.path}@{module.version} is {told['Sum']}, and {module.checksum} is pinned.")
    return Path(told["Dir"])


def list_monitor_definitions() -> list[Path]:
    """Return the files that define what the chart can make for the Prometheus operator."""
    folder = obtain_folder(PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    return [folder / f"monitoring.coreos.com_{plural}.yaml" for plural in _MONITORS]
