"""Put things of this machine into a cluster: images into its registry, folders behind a claim."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.cluster.errors import ClusterError

# Pushing the largest image, 5.6 GB, took 110 s on two cores.
_PUSH_DEADLINE_S = 1800


def push_image(source: str, registry: str, name: str) -> str:
    """Push an image to the registry and return its reference by digest.

    Args:
        source: a name in buildah's storage, or the path of an OCI archive.
        registry: `host:port`, plain HTTP.
        name: repository and tag, such as `dedicate/runtime:dev`.

    Raises:
        ClusterError: buildah could not read or push it.
    """
    image = _buildah("pull", "--quiet", f"oci-archive:{source}").strip() if Path(source).is_file() else source
    with tempfile.NamedTemporaryFile("r", prefix="digest-") as digest:
        _buildah(
            "push", "--quiet", "--tls-verify=false", f"--digestfile={digest.name}", image, f"docker://{registry}/{name}"
        )
        repository = name.rsplit(":", 1)[0]
        return f"{registry}/{repository}@{digest.read().strip()}"


def _buildah(*arguments: str) -> str:
    result = subprocess.run(
        ["buildah", *arguments], capture_output=True, text=True, timeout=_PUSH_DEADLINE_S, check=False
    )
    if result.returncode != 0:
        raise ClusterError(f"buildah {arguments[0]} failed: {result.stderr.strip()}")
    return result.stdout


def publish_folder(apply: Callable[[str], Any], folder: Path, claim: str, namespace: str) -> None:
    """Offer a folder of this machine to pods as a claim for reading, bound at once.

    Args:
        apply: applies a manifest, given as JSON.
        folder: must be readable by any user, as pods run as one that owns nothing here.
        claim: the claim's name.
        namespace: where the claim is to be; it must exist.

    Raises:
        ClusterError: something in the folder is not readable by all.
    """
    folder = folder.resolve(strict=True)
    hidden = find_unreadable(folder)
    if hidden is not None:
        raise ClusterError(f"{hidden} is not readable by all users, and pods run as another one than you.")
    apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": build_published_volume(folder, claim, namespace)}))


def find_unreadable(folder: Path) -> Path | None:
    """Return something in the folder, itself included, that not every user may read, if there is such a thing."""
    for path in (folder, *folder.rglob("*")):
        needed = 0o005 if path.is_dir() else 0o004
        if path.stat().st_mode & needed != needed:
            return path
    return None


def build_published_volume(folder: Path, claim: str, namespace: str) -> list[dict[str, Any]]:
    """Return the volume and the claim, made for each other."""
    size = {"storage": "1Gi"}  # arbitrary: a folder has no capacity, and nothing holds the claim to it
    name = f"{namespace}-{claim}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": size,
            "accessModes": ["ReadOnlyMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": "",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }
    wanted = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "",
            "volumeName": name,
            "resources": {"requests": size},
        },
    }
    return [volume, wanted]
