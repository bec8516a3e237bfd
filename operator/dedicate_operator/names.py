"""Every name, label and key that the operator writes; nothing else spells them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

GROUP = "dedicate.dev"
VERSION = "v1alpha1"
KIND = "DedicatedEndpoint"
PLURAL = "dedicatedendpoints"
API_VERSION = f"{GROUP}/{VERSION}"

FIELD_MANAGER = "dedicate-operator"

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
ENDPOINT_LABEL = f"{GROUP}/endpoint"
CHILDREN_SELECTOR = f"{MANAGED_BY_LABEL}={FIELD_MANAGER}"

# What the operator last meant an object to be; differs when a field was dropped from the intent, too.
MANIFEST_HASH_ANNOTATION = f"{GROUP}/manifest-hash"
# On the pod template: which pods belong to the present one.
TEMPLATE_HASH_ANNOTATION = f"{GROUP}/template-hash"
# On the Deployment: the template that its pods are made of, and the specification that it was rendered for.
RENDERED_ANNOTATION = f"{GROUP}/rendered"
# On the Deployment: the replicas that the operator last gave it, which tells them from what somebody else did.
REPLICAS_ANNOTATION = f"{GROUP}/replicas"

CONTAINER = "runtime"
API_PORT_NAME = "http"
API_PORT = 8000
MANAGEMENT_PORT_NAME = "management"
MANAGEMENT_PORT = 9000
SERVICE_PORT = 80

KEYS_VOLUME = "api-keys"
KEYS_DIR = "/etc/dedicate/keys"
LIMITS_VOLUME = "limits"
LIMITS_DIR = "/etc/dedicate/limits"
MODELS_VOLUME = "model"
MODELS_DIR = "/models"
# Where the download puts a link to the snapshot that the runtime loads.
MODEL_LINK = f"{MODELS_DIR}/current"
DOWNLOAD_CONTAINER = "model-download"
PROGRESS_PORT_NAME = "progress"
PIN_VOLUME = "model-pin"
PIN_DIR = "/etc/dedicate/model"
PIN_KEY = "commit"
CACHE_VOLUME = "cache"
CACHE_DIR = "/cache"
TMP_VOLUME = "tmp"
TMP_DIR = "/tmp"  # noqa: S108 - a path inside the container, on an emptyDir of its own
SHM_VOLUME = "shm"
SHM_DIR = "/dev/shm"  # noqa: S108 - likewise
FAILURE_FILE = "/dev/termination-log"

# The client id of the key that the operator generates.
DEFAULT_CLIENT = "default"


def keys_secret_name(endpoint: str) -> str:
    return f"{endpoint}-api-keys"


def cache_claim_name(endpoint: str) -> str:
    return f"{endpoint}-cache"


def pin_name(endpoint: str, request: str) -> str:
    """Return the name of the ConfigMap with the commit that a request was resolved to; each request has its own."""
    return f"{endpoint}-model-{hashlib.sha256(request.encode()).hexdigest()[:8]}"


def build_labels(endpoint: str) -> dict[str, str]:
    """Return a new dict of the labels that every child and every pod carries."""
    return {
        "app.kubernetes.io/name": "dedicate-runtime",
        "app.kubernetes.io/instance": endpoint,
        "app.kubernetes.io/component": CONTAINER,
        MANAGED_BY_LABEL: FIELD_MANAGER,
        ENDPOINT_LABEL: endpoint,
    }


def build_selector(endpoint: str) -> dict[str, str]:
    """Return a new dict of the labels that select an endpoint's pods and nothing else."""
    return {ENDPOINT_LABEL: endpoint}


def format_selector(endpoint: str) -> str:
    return ",".join(f"{key}={value}" for key, value in build_selector(endpoint).items())


def hash_manifest(manifest: Mapping[str, Any]) -> str:
    """Return 16 hex digits that are equal for equal manifests, whatever the order of their keys."""
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
