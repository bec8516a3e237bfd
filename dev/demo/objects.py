"""What the demonstration puts into a cluster, as plain manifests and chart values. Pure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dev.cluster.plan import Ports
from dev.images.recipe import ImageReference

OPERATOR_NAMESPACE = "dedicate-system"
ENDPOINT_NAMESPACE = "dedicate-demo"
RELEASE = "dedicate"
ENDPOINT = "smollm"
MODELS_CLAIM = "models"

Manifest = dict[str, Any]


def build_local_values(
    images: dict[str, ImageReference], *, host: str, class_name: str, ports: Ports
) -> dict[str, Any]:
    """Return chart values for the local cluster: our images by digest, how clients reach its ingress, its API port."""

    def image(name: str) -> dict[str, str]:
        reference = images[name]
        return {"repository": reference.name, "tag": reference.tag, "digest": reference.digest}

    return {
        "operator": {"image": image("operator")},
        "runtime": {"image": image("runtime")},
        "route": {
            "host": host,
            "className": class_name,
            "externalPort": ports.ingress,
            "externalTLSPort": ports.ingress_tls,
        },
        # The customary port may have been taken, and the cluster enforces NetworkPolicies.
        "networkPolicy": {"apiServer": {"ports": [443, ports.api]}},
    }


def build_registry_values(registry: str, tag: str | None) -> dict[str, Any]:
    """Return chart values for images that the user has pushed to a registry of their own."""

    def image(name: str) -> dict[str, str]:
        return {"repository": f"{registry}/dedicate-{name}"} | ({"tag": tag} if tag else {})

    return {"operator": {"image": image("operator")}, "runtime": {"image": image("runtime")}}


def build_model_volume(folder: Path, namespace: str, claim: str = MODELS_CLAIM) -> list[Manifest]:
    """Return a claim, and a volume for it alone, around a folder of models on the node's disk."""
    common = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
    }
    name = f"{namespace}-{claim}"
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": common
        | {
            "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(folder), "type": "Directory"},
            "claimRef": {"namespace": namespace, "name": claim},
        },
    }
    request = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": claim, "namespace": namespace},
        "spec": common | {"volumeName": name, "resources": {"requests": {"storage": "1Gi"}}},
    }
    return [volume, request]


def build_endpoint(
    model_uri: str, *, name: str = ENDPOINT, namespace: str = ENDPOINT_NAMESPACE, **spec: Any
) -> Manifest:
    """Return an endpoint for a small model on a CPU; `spec` adds fields or replaces them."""
    sizes = {
        "requests": {"cpu": "100m", "memory": "1Gi", "ephemeral-storage": "64Mi"},
        "limits": {"cpu": "2", "memory": "4Gi", "ephemeral-storage": "1Gi"},
    }
    return {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "model": {"uri": model_uri, "servedName": ENDPOINT},
            "accelerator": {"count": 0, "sharedMemory": "128Mi"},
            "resources": sizes,
            **spec,
        },
    }
