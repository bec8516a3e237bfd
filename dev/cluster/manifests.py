"""Manifests that a Go module carries beside its code, fetched once for each pin: definitions of others' kinds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.errors import ClusterError, PreconditionError
from dev.paths import cache_dir, content_key

_MODULES_FOLDER = Path(__file__).parent / "go"
_DOWNLOAD_DEADLINE_S = 300


@dataclass(frozen=True)
class ManifestModule:
    """A pinned module and the folder in it that has the manifests."""

    name: str
    path: str

    @property
    def folder(self) -> Path:
        return _MODULES_FOLDER / self.name

    @property
    def output(self) -> Path:
        """Where the manifests are cached; changes with any file of the module."""
        return cache_dir() / "manifests" / content_key(sorted(self.folder.iterdir()), salt=self.path)


GATEWAY_API = ManifestModule("gateway-api", "config/crd/standard")
PROMETHEUS_OPERATOR = ManifestModule("prometheus-operator", "example/prometheus-operator-crd")
KEDA = ManifestModule("keda", "config/crd/bases")


def obtain_manifests(module: ManifestModule) -> Path:
    """Return the folder with the module's manifests, fetching the module if they are not there.

    Raises:
        PreconditionError: there is no Go to fetch it with.
        ClusterError: it could not be fetched.
    """
    if not module.output.exists():
        source = _download(module) / module.path
        module.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=module.output.parent, prefix=f".{module.name}-") as scratch:
            content = Path(scratch) / "content"
            content.mkdir()
            for file in sorted(source.glob("*.yaml")):
                shutil.copyfile(file, content / file.name)
            try:
                content.rename(module.output)
            except OSError:
                if not module.output.exists():  # else somebody was faster, with the same content
                    raise
    return module.output


def read_definitions(folder: Path) -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions among the manifests."""
    documents = [item for file in sorted(folder.glob("*.yaml")) for item in yaml.safe_load_all(file.read_text())]
    return [item for item in documents if item and item["kind"] == "CustomResourceDefinition"]


def _download(module: ManifestModule) -> Path:
    """Return the folder of the module's one requirement, whose checksum stands in go.sum."""
    if shutil.which("go") is None:
        raise PreconditionError(f"Go is needed to fetch the manifests of {module.name}, and no `go` is on PATH.")
    result = subprocess.run(
        ["go", "mod", "download", "-json"],
        cwd=module.folder,
        env=os.environ | {"GOFLAGS": "-mod=readonly"},
        capture_output=True,
        text=True,
        timeout=_DOWNLOAD_DEADLINE_S,
        check=False,
    )
    if result.returncode != 0:
        raise ClusterError(f"Fetching {module.name} failed: {(result.stderr or result.stdout).strip()}")
    return Path(json.loads(result.stdout)["Dir"])
