"""Documents as an API server would give them, for the tests of this folder."""

from __future__ import annotations

import copy
from pathlib import Path

from dedicate_operator.names import ENDPOINT_LABEL, MANAGED_BY_LABEL, TEMPLATE_HASH_ANNOTATION
from dedicate_operator.settings import EndpointDefaults

CRD_FILE = Path(__file__).parents[3] / "crds/dedicatedendpoints.yaml"
DEFAULTS = EndpointDefaults(image="registry/runtime:1")
HUB = {"model": {"uri": "hf://org/name"}}


def custom_resource(name="chat", spec=None, *, uid=None, version="1", created="2026-01-01T00:00:00Z", **metadata):
    return {
        "apiVersion": "dedicate.dev/v1alpha1",
        "kind": "DedicatedEndpoint",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": uid or f"uid-{name}",
            "generation": 1,
            "resourceVersion": version,
            "creationTimestamp": created,
            **metadata,
        },
        "spec": copy.deepcopy(spec or HUB),
    }


def as_child(manifest, *, version="1", uid="child", **status):
    """Return the manifest as it is observed once the API server has it."""
    child = copy.deepcopy(manifest)
    child["metadata"] |= {"resourceVersion": version, "uid": uid, "generation": 1}
    return child | ({"status": status} if status else {})


def pod(
    template_hash, *, name="pod", ready=False, endpoint="chat", container=None, conditions=(), version="1", **metadata
):
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "team",
            "name": name,
            "uid": f"uid-{name}",
            "resourceVersion": version,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {ENDPOINT_LABEL: endpoint, MANAGED_BY_LABEL: "dedicate-operator"},
            "annotations": {TEMPLATE_HASH_ANNOTATION: template_hash},
            **metadata,
        },
        "status": {
            "phase": "Running",
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True" if ready else "False"},
                *conditions,
            ],
            "containerStatuses": [
                {"name": "runtime", "ready": ready, "started": ready, "state": {"running": {}}} | (container or {})
            ],
        },
    }


def walk(schema, path="$"):
    """Yield the path and the schema of every field, parents before children."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if isinstance(schema.get("items"), dict):
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}{{}}")
