"""The version before this one, out of the repository's history: where an upgrade starts and a rollback ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dev.paths import REPOSITORY

# The last commit of 0.1.0 in which the operator knew no NetworkPolicy, no HTTPRoute and no autoscaler.
PREVIOUS = "1e4cd2138576996d8949e4fae6475b5914aa1827"


def export_previous(folder: Path) -> Path:
    """Write the previous version's files into an empty folder; skip where the history is not there, fail in CI."""
    known = subprocess.run(["git", "cat-file", "-e", PREVIOUS], cwd=REPOSITORY, capture_output=True, check=False)
    if known.returncode != 0:
        complaint = f"an upgrade needs the history of the repository, which lacks {PREVIOUS}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(complaint)
    archive = subprocess.run(["git", "archive", PREVIOUS], cwd=REPOSITORY, capture_output=True, check=True)
    subprocess.run(["tar", "--extract", f"--directory={folder}"], input=archive.stdout, check=True)
    return folder


def push_previous_operator(tree: Path, registry: str) -> dict[str, str]:
    """Build the image of an exported operator by that version's own recipe, push it, and return it as chart values."""
    script = f"""
import json
from dev.images.api import push_images
image = push_images(["operator"], {registry!r}, lambda line: None)["operator"]
print(json.dumps({{"repository": image.name, "tag": image.tag, "digest": image.digest}}))
"""
    environment = os.environ | {"PYTHONPATH": str(tree)}
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        timeout=1800,
        check=True,
    )
    image: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    return image
