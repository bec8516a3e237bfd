"""Builders of the children: one endpoint and the operator's defaults in, one new manifest out.

Pure. What is left out of a manifest belongs to somebody else. `seal` puts the hash of the whole intent on an object,
so that a field that is dropped from the intent later is noticed as well as one that is changed.
"""

from __future__ import annotations

import base64
import copy
from typing import Any

from dedicate_operator import names
from dedicate_operator.rendering import Rendering, plan_rendering
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint, OwnedClaimCache
from dedicate_operator.template import Manifest

# A rollout is called stalled only after a pod has had its whole startup, scheduling and a pull.
_PROGRESS_MARGIN_S = 600


def build_deployment(
    endpoint: Endpoint,
    defaults: EndpointDefaults,
    *,
    can_surge: bool = True,
    rendering: Rendering | None = None,
    replicas: int | None = None,
) -> Manifest:
    """Return the Deployment, with a new pod template and as many replicas as wanted if it is not told others."""
    spec, metadata = endpoint.spec, build_metadata(endpoint, endpoint.key.name)
    rendering = rendering or plan_rendering(endpoint, defaults, None)
    replicas = spec.wanted_replicas if replicas is None else replicas
    metadata["annotations"] = {names.REPLICAS_ANNOTATION: str(replicas)}
    if rendering.record is not None:
        metadata["annotations"][names.RENDERED_ANNOTATION] = rendering.record
    return seal(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": metadata,
            "spec": {
                "replicas": replicas,
                "revisionHistoryLimit": 3,
                "progressDeadlineSeconds": spec.progress_deadline_s or spec.startup_timeout_s + _PROGRESS_MARGIN_S,
                "selector": {"matchLabels": names.build_selector(endpoint.key.name)},
                "strategy": _build_strategy(endpoint, can_surge=can_surge),
                "template": copy.deepcopy(rendering.template),
            },
        }
    )


def _build_strategy(endpoint: Endpoint, *, can_surge: bool) -> Manifest:
    cache = endpoint.spec.cache
    # A ReadWriteOnce claim is mounted on one node: a second pod elsewhere would wait for ever for the first to go.
    is_exclusive = isinstance(cache, OwnedClaimCache) and cache.access_mode == "ReadWriteOnce"
    strategy = endpoint.spec.rollout_strategy
    if strategy == "Recreate" or (strategy == "Auto" and is_exclusive):
        return {"type": "Recreate"}
    # Without a free device a new pod can start only where an old one goes.
    surge, unavailable = (0, 1) if strategy == "Auto" and not can_surge else (1, 0)
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}


def build_service(endpoint: Endpoint) -> Manifest:
    return seal(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": build_metadata(endpoint, endpoint.key.name),
            "spec": {
                "type": "ClusterIP",
                "selector": names.build_selector(endpoint.key.name),
                "ports": [
                    {
                        "name": names.API_PORT_NAME,
                        "port": names.SERVICE_PORT,
                        "protocol": "TCP",
                        "targetPort": names.API_PORT_NAME,
                    }
                ],
            },
        }
    )


def build_cache_claim(endpoint: Endpoint, cache: OwnedClaimCache) -> Manifest:
    """Return the claim; one that is to outlive the endpoint has no owner."""
    metadata = build_metadata(endpoint, names.cache_claim_name(endpoint.key.name))
    if cache.retention_policy == "Retain":
        del metadata["ownerReferences"]
    spec: Manifest = {"accessModes": [cache.access_mode], "resources": {"requests": {"storage": cache.size}}}
    if cache.storage_class_name:
        spec["storageClassName"] = cache.storage_class_name
    return seal({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})


def build_keys_secret(endpoint: Endpoint, key: str) -> Manifest:
    """Return the Secret with one generated key; it is created once and never read or written again."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "Opaque",
        "metadata": build_metadata(endpoint, names.keys_secret_name(endpoint.key.name)),
        "data": {names.DEFAULT_CLIENT: base64.b64encode(key.encode()).decode()},
    }


def build_owner_reference(endpoint: Endpoint) -> Manifest:
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": endpoint.key.name,
        "uid": endpoint.uid,
        "controller": True,
        # True would ask for a right on the resource's finalizers, for nothing that we need.
        "blockOwnerDeletion": False,
    }


def seal(manifest: Manifest) -> Manifest:
    """Return the manifest with its own hash as an annotation; the argument is left as it was."""
    metadata: dict[str, Any] = dict(manifest["metadata"])
    annotations = {**metadata.get("annotations", {}), names.MANIFEST_HASH_ANNOTATION: names.hash_manifest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def build_metadata(endpoint: Endpoint, name: str) -> Manifest:
    return {
        "name": name,
        "namespace": endpoint.key.namespace,
        "labels": names.build_labels(endpoint.key.name),
        "ownerReferences": [build_owner_reference(endpoint)],
    }
