"""Definitions of others' kinds, read from the Go modules that carry them, at the versions pinned in `go/`."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from dev.cluster.errors import ClusterError
from dev.cluster.toolchain import check_go

_MODULES = Path(__file__).parent / "go"


def read_keda_definitions() -> list[dict[str, Any]]:
    """Return KEDA's CustomResourceDefinition of ScaledObjects."""
    folder = _download("keda", "github.com/kedacore/keda/v2")
    return [yaml.safe_load((folder / "config/crd/bases/keda.sh_scaledobjects.yaml").read_text())]


def _download(name: str, module: str) -> Path:
    """Return the folder of a module's content, checked against go.sum; fetched once and then cached by Go."""
    check_go()
    done = subprocess.run(
        ["go", "mod", "download", "-json", module], cwd=_MODULES / name, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise ClusterError(f"{module} could not be fetched: {done.stderr.strip() or done.stdout.strip()}")
    return Path(json.loads(done.stdout)["Dir"])
