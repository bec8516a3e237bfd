"""The pod template: what the contract with the runtime (docs/contract.md) looks like as a pod.

Pure. Every call returns a new structure that shares nothing with its arguments.
"""

from __future__ import annotations

import copy
from typing import Any

from dedicate_operator import names
from dedicate_operator.modelpod import (
    build_download,
    build_env,
    build_model_mounts,
    build_model_volumes,
    model_folder,
)
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint, EndpointSpec

Manifest = dict[str, Any]

# The runtime image's user and group.
_RUNTIME_ID = 10001
# What the kubelet's own SIGKILL waits beyond the runtime's drain, so that the drain always ends first.
_TERMINATION_MARGIN_S = 15
_STARTUP_PERIOD_S = 5

# (resource, request, limit). Arbitrary; wide enough for an 8-billion-parameter model in half precision on one device.
_DEFAULT_RESOURCES = (
    ("cpu", "1", "8"),
    ("memory", "4Gi", "32Gi"),
    ("ephemeral-storage", "1Gi", "200Gi"),
)


def build_pod_template(endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest:
    """Return the template, annotated with its own hash so that its pods can be told from older ones."""
    template: Manifest = {
        "metadata": {"labels": names.build_labels(endpoint.key.name)},
        "spec": _build_pod_spec(endpoint, defaults),
    }
    template["metadata"]["annotations"] = {names.TEMPLATE_HASH_ANNOTATION: names.hash_manifest(template)}
    return template


def select_image(spec: EndpointSpec, defaults: EndpointDefaults) -> str:
    return spec.runtime.image or defaults.image


def select_keys_secret(endpoint: Endpoint) -> str | None:
    """Return the name of the Secret that holds the API keys, None where requests need none."""
    if endpoint.spec.auth.mode == "None":
        return None
    return endpoint.spec.auth.api_keys_secret or names.keys_secret_name(endpoint.key.name)


def _build_pod_spec(endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest:
    spec, scheduling = endpoint.spec, endpoint.spec.scheduling
    pod: Manifest = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": spec.pre_stop_s + spec.drain_s + _TERMINATION_MARGIN_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _RUNTIME_ID,
            "runAsGroup": _RUNTIME_ID,
            "fsGroup": _RUNTIME_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_build_container(endpoint, defaults)],
        "volumes": _build_volumes(endpoint),
        "topologySpreadConstraints": _build_spread(endpoint),
    }
    download = build_download(endpoint, defaults, _build_shared(spec, defaults))
    pull_secrets = spec.runtime.image_pull_secrets or defaults.image_pull_secrets
    optional: Manifest = {
        "initContainers": [download] if download else [],
        "imagePullSecrets": [{"name": name} for name in pull_secrets],
        "nodeSelector": dict(scheduling.node_selector),
        "tolerations": copy.deepcopy(list(scheduling.tolerations)),
        "affinity": copy.deepcopy(scheduling.affinity),
        "runtimeClassName": scheduling.runtime_class_name,
        "priorityClassName": scheduling.priority_class_name,
    }
    return pod | {key: value for key, value in optional.items() if value}


def _build_shared(spec: EndpointSpec, defaults: EndpointDefaults) -> Manifest:
    """Return what every container of the pod has in common."""
    return {
        "image": select_image(spec, defaults),
        # A download asks for what the runtime has, which costs nothing, as they never run at once, and keeps the pod's
        # quality of service what the author made it.
        "resources": _build_resources(spec),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": names.FAILURE_FILE,
        "terminationMessagePolicy": "File",
    }


def _build_container(endpoint: Endpoint, defaults: EndpointDefaults) -> Manifest:
    spec = endpoint.spec
    container: Manifest = {
        "name": names.CONTAINER,
        **_build_shared(spec, defaults),
        "args": build_args(endpoint),
        "env": build_env(spec, {"HF_HUB_OFFLINE": {"value": "1"}}),
        "ports": [
            {"name": names.API_PORT_NAME, "containerPort": names.API_PORT, "protocol": "TCP"},
            {"name": names.MANAGEMENT_PORT_NAME, "containerPort": names.MANAGEMENT_PORT, "protocol": "TCP"},
        ],
        "startupProbe": _build_probe("/startupz", _STARTUP_PERIOD_S, -(-spec.startup_timeout_s // _STARTUP_PERIOD_S)),
        "readinessProbe": _build_probe("/readyz", period_s=5, failures=2),
        "livenessProbe": _build_probe("/healthz", period_s=10, failures=3),
        "volumeMounts": _build_mounts(endpoint),
    }
    _add_accelerator(container["resources"], spec)
    if spec.pre_stop_s:
        container["lifecycle"] = {"preStop": {"sleep": {"seconds": spec.pre_stop_s}}}
    return container


def build_args(endpoint: Endpoint) -> list[str]:
    """Return the runtime's command line; the author's own arguments come last, where they win."""
    spec, model = endpoint.spec, endpoint.spec.model
    args = ["--model", model_folder(model.source), "--dedicate", spec.dedicate]
    for name in model.served_names:
        args += ["--served-model-name", name]
    args += ["--device", "cuda" if spec.accelerator.count else "cpu"]
    args += ["--dtype", model.dtype.lower(), "--sampling-defaults", model.sampling_defaults.lower()]
    if model.max_length_tokens is not None:
        args += ["--max-model-len", str(model.max_length_tokens)]
    if model.remote_code == "Allow":
        args += ["--trust-remote-code"]
    if select_keys_secret(endpoint) is None:
        args += ["--auth", "none"]
    else:
        args += ["--auth", "api-key", "--api-keys-dir", names.KEYS_DIR]
    if spec.auth.limits is not None:
        args += ["--limits-file", f"{names.LIMITS_DIR}/{spec.auth.limits.key}"]
    args += ["--port", str(names.API_PORT), "--management-port", str(names.MANAGEMENT_PORT)]
    args += ["--drain-seconds", str(spec.drain_s), "--failure-file", names.FAILURE_FILE]
    return [*args, *spec.runtime.args]


def _build_resources(spec: EndpointSpec) -> Manifest:
    requests, limits = dict(spec.resources.requests), dict(spec.resources.limits)
    for name, request, limit in _DEFAULT_RESOURCES:
        # Only where the author named neither: a default beside a given one could contradict it.
        if name not in requests and name not in limits:
            requests[name], limits[name] = request, limit
    for amounts in (requests, limits):
        # Of the runtime alone, which adds it itself.
        if spec.accelerator.count:
            amounts.pop(spec.accelerator.resource_name, None)
    return {"requests": requests, "limits": limits}


def _add_accelerator(resources: Manifest, spec: EndpointSpec) -> None:
    if spec.accelerator.count:
        # Extended resources take request = limit; a request that differs would be refused.
        resources["limits"][spec.accelerator.resource_name] = str(spec.accelerator.count)


def _build_probe(path: str, period_s: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": names.MANAGEMENT_PORT_NAME, "scheme": "HTTP"},
        "periodSeconds": period_s,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _build_mounts(endpoint: Endpoint) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": names.TMP_VOLUME, "mountPath": names.TMP_DIR},
        {"name": names.SHM_VOLUME, "mountPath": names.SHM_DIR},
    ]
    if select_keys_secret(endpoint) is not None:
        mounts.append({"name": names.KEYS_VOLUME, "mountPath": names.KEYS_DIR, "readOnly": True})
    if endpoint.spec.auth.limits is not None:
        # The whole folder: a single file mounted by subPath is never renewed by the kubelet.
        mounts.append({"name": names.LIMITS_VOLUME, "mountPath": names.LIMITS_DIR, "readOnly": True})
    return mounts + build_model_mounts(endpoint)


def _build_volumes(endpoint: Endpoint) -> list[Manifest]:
    spec = endpoint.spec
    volumes: list[Manifest] = [
        {"name": names.TMP_VOLUME, "emptyDir": {}},
        {"name": names.SHM_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": spec.accelerator.shared_memory}},
    ]
    secret = select_keys_secret(endpoint)
    if secret is not None:
        volumes.append({"name": names.KEYS_VOLUME, "secret": {"secretName": secret, "defaultMode": 0o440}})
    if spec.auth.limits is not None:
        config_map = {"name": spec.auth.limits.name, "defaultMode": 0o440}
        volumes.append({"name": names.LIMITS_VOLUME, "configMap": config_map})
    return volumes + build_model_volumes(endpoint)


def _build_spread(endpoint: Endpoint) -> list[Manifest]:
    given = endpoint.spec.scheduling.topology_spread_constraints
    if given:
        return copy.deepcopy(list(given))
    return [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": names.build_selector(endpoint.key.name)},
        }
    ]
