"""What a pod holds because of where its model comes from: a download before the runtime, a claim, or an image.

Whatever the source, the runtime finds a folder below /models and is offline: only the download knows the hub, its token
and the way there. Pure.
"""

from __future__ import annotations

import copy
from typing import Any

from dedicate_operator import names
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import (
    ClaimSource,
    EmptyDirCache,
    Endpoint,
    EndpointSpec,
    ExistingClaimCache,
    HubSource,
    ImageSource,
    OwnedClaimCache,
    Source,
)

Manifest = dict[str, Any]

_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def model_folder(source: Source) -> str:
    """Return the folder that the runtime loads."""
    if isinstance(source, HubSource):
        return names.MODEL_LINK
    if isinstance(source, ClaimSource):
        return f"{names.MODELS_DIR}/{source.path}".rstrip("/")
    return names.MODELS_DIR


def build_download(endpoint: Endpoint, defaults: EndpointDefaults, shared: Manifest) -> Manifest | None:
    """Return the container that downloads the model before the runtime starts; None where nothing is downloaded.

    Args:
        endpoint: whose model.
        defaults: what it leaves out.
        shared: the fields that it has in common with the runtime's container.
    """
    source = endpoint.spec.model.source
    if not isinstance(source, HubSource):
        return None
    return {
        "name": names.DOWNLOAD_CONTAINER,
        **shared,
        "command": ["python", "-m", "dedicate_runtime.download"],
        "args": build_download_args(endpoint, source),
        "env": build_env(endpoint.spec, _build_hub_env(source, defaults)),
        "ports": [{"name": names.PROGRESS_PORT_NAME, "containerPort": names.MANAGEMENT_PORT, "protocol": "TCP"}],
        "volumeMounts": _build_download_mounts(source),
    }


def build_download_args(endpoint: Endpoint, source: HubSource) -> list[str]:
    args = ["--model", source.uri]
    if source.revision:
        args += ["--revision", source.revision]
    if endpoint.spec.model.remote_code == "Allow":
        args += ["--trust-remote-code"]
    args += ["--link", names.MODEL_LINK]
    if source.commit is None:
        # Endpoints may share a cache, and each keeps the commit that it began with.
        args += ["--pin", endpoint.uid, "--pinned-commit-file", f"{names.PIN_DIR}/{names.PIN_KEY}"]
    cache = endpoint.spec.cache
    if isinstance(cache, EmptyDirCache) and cache.size_limit:
        args += ["--max-cache-bytes", str(_count_bytes(cache.size_limit))]
    return [*args, "--management-port", str(names.MANAGEMENT_PORT), "--failure-file", names.FAILURE_FILE]


def build_env(spec: EndpointSpec, own: dict[str, Manifest]) -> list[Manifest]:
    """Return a container's variables, its own and the author's, which win and go to every container."""
    env = {"HOME": {"value": names.TMP_DIR}, **own}
    for variable in copy.deepcopy(spec.runtime.env):
        env[variable.pop("name")] = variable
    return [{"name": name, **value} for name, value in env.items()]


def build_model_mounts(endpoint: Endpoint) -> list[Manifest]:
    """Return the runtime's mounts for its model, none of which it may write to."""
    mounts: list[Manifest] = [{"name": names.MODELS_VOLUME, "mountPath": names.MODELS_DIR, "readOnly": True}]
    if endpoint.spec.cache is not None:
        mounts.append({"name": names.CACHE_VOLUME, "mountPath": names.CACHE_DIR, "readOnly": True})
    return mounts


def build_model_volumes(endpoint: Endpoint) -> list[Manifest]:
    source = endpoint.spec.model.source
    volumes: list[Manifest] = [{"name": names.MODELS_VOLUME, **_build_models_source(source)}]
    if endpoint.spec.cache is not None:
        volumes.append({"name": names.CACHE_VOLUME, **_build_cache_source(endpoint)})
    if isinstance(source, HubSource) and source.commit is None:
        # Made once the first pod has told which commit it is; the template stays the same, so nothing rolls.
        config_map = {"name": names.pin_name(endpoint.key.name, source.request), "optional": True, "defaultMode": 0o440}
        volumes.append({"name": names.PIN_VOLUME, "configMap": config_map})
    return volumes


def _build_models_source(source: Source) -> Manifest:
    if isinstance(source, ClaimSource):
        return {"persistentVolumeClaim": {"claimName": source.claim}}
    if isinstance(source, ImageSource):
        return {"image": {"reference": source.reference}}
    return {"emptyDir": {}}


def _build_cache_source(endpoint: Endpoint) -> Manifest:
    cache = endpoint.spec.cache
    if isinstance(cache, OwnedClaimCache):
        return {"persistentVolumeClaim": {"claimName": names.cache_claim_name(endpoint.key.name)}}
    if isinstance(cache, ExistingClaimCache):
        return {"persistentVolumeClaim": {"claimName": cache.name}}
    return {"emptyDir": {"sizeLimit": cache.size_limit} if cache and cache.size_limit else {}}


def _build_download_mounts(source: HubSource) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": names.TMP_VOLUME, "mountPath": names.TMP_DIR},
        {"name": names.MODELS_VOLUME, "mountPath": names.MODELS_DIR},
        {"name": names.CACHE_VOLUME, "mountPath": names.CACHE_DIR},
    ]
    if source.commit is None:
        mounts.append({"name": names.PIN_VOLUME, "mountPath": names.PIN_DIR, "readOnly": True})
    return mounts


def _build_hub_env(source: HubSource, defaults: EndpointDefaults) -> dict[str, Manifest]:
    env: dict[str, Manifest] = {"HF_HOME": {"value": f"{names.CACHE_DIR}/huggingface"}}
    if defaults.hub_endpoint:
        env["HF_ENDPOINT"] = {"value": defaults.hub_endpoint}
    if source.token_secret:
        reference = {"name": source.token_secret, "key": source.token_key}
        env["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": reference}}
    return env


def _count_bytes(quantity: str) -> int:
    number = quantity.rstrip("kKMGTi")
    return int(number) * _UNITS[quantity[len(number) :]]
