"""Another version of the operator and its chart, as an upgrade starts from and a rollback returns to.

None has been released yet, so it is made of this one: a copy whose operator renders another pod template for the same
endpoint, and whose definition lacks a field. That is what tells versions apart, for the pods and for the API server.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from dev.paths import REPOSITORY

_FOLDERS = ("operator", "charts", "requirements", "dev")
_FILES = ("pyproject.toml", ".dockerignore")
# Where the operator's template begins, and what the other version would put there besides.
_TEMPLATE = '"HOME": {"value": names.TMP_DIR}'
_OTHER_TEMPLATE = f'{_TEMPLATE}, "WRITTEN_BY": {{"value": "another version"}}'
# The field that the other version's definition does not have.
MISSING_FIELD = "networkPolicy"


def make_other_version(folder: Path) -> Path:
    """Write the other version's files into an empty folder."""
    for name in _FOLDERS:
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _FILES:
        shutil.copy(REPOSITORY / name, folder / name)
    changed = [path for path in (folder / "operator").rglob("*.py") if _replace(path, _TEMPLATE, _OTHER_TEMPLATE)]
    assert len(changed) == 1, changed
    _drop_field(folder / "charts" / "dedicate" / "files" / "dedicatedendpoints.yaml")
    return folder


def push_other_operator(tree: Path, registry: str) -> dict[str, str]:
    """Build the image of the other version's operator by its own recipe, push it, and return it as chart values."""
    script = f"""
import json
from dev.images.api import push_images
image = push_images(["operator"], {registry!r}, lambda line: None)["operator"]
print(json.dumps({{"repository": image.name, "tag": image.tag, "digest": image.digest}}))
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    image: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return image


def _replace(path: Path, old: str, new: str) -> bool:
    text = path.read_text()
    if old not in text:
        return False
    path.write_text(text.replace(old, new))
    return True


def _drop_field(definition: Path) -> None:
    document = yaml.safe_load(definition.read_text())
    (version,) = document["spec"]["versions"]
    del version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"][MISSING_FIELD]
    definition.write_text(yaml.safe_dump(document, sort_keys=False))
