"""What an endpoint's author can do about a condition that is not met, in one sentence that names the field.

Pure. docs/runbook.md says more of each reason; what the message itself tells how to mend has no advice here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dedicate_operator.spec import ClaimSource, EmptyDirCache, Endpoint, ExistingClaimCache, HubSource, OwnedClaimCache

# Room for the advice behind the longest message.
MAX_ADVICE_LENGTH = 320

Advisor = Callable[[Endpoint, str], str]


def advise(endpoint: Endpoint, reason: str, message: str) -> str:
    """Return the message with what to do about it, as far as there is something to say."""
    advisor = _ADVISORS.get(reason)
    advice = _SENTENCES.get(reason) if advisor is None else advisor(endpoint, message)
    return f"{message.rstrip('. ')}. {advice[:MAX_ADVICE_LENGTH]}" if advice else message


def _advise_unschedulable(endpoint: Endpoint, message: str) -> str:
    device = endpoint.spec.accelerator.resource_name
    if f"Insufficient {device}" in message:
        return f"Free a {device} or add a node that has one; spec.accelerator.count 0 runs the model on CPU"
    if "untolerated taint" in message:
        return "Add the taint to spec.scheduling.tolerations"
    if "Insufficient" in message:
        return "Lower spec.resources.requests, or add a node"
    if "affinity" in message or "selector" in message:
        return "Check spec.scheduling against the labels of the nodes"
    return f"See {_describe_pods(endpoint)}"


def _advise_image(endpoint: Endpoint, _: str) -> str:
    if endpoint.spec.runtime.image is None:
        return "The image is the operator's default: its administrator sets runtime.image in the chart's values"
    return "Check spec.runtime.image, and spec.runtime.imagePullSecrets where the registry asks who pulls"


def _advise_secret(endpoint: Endpoint, message: str) -> str:
    source, auth = endpoint.spec.model.source, endpoint.spec.auth
    fields = {auth.api_keys_secret: "spec.auth.apiKeysSecretRef"}
    if isinstance(source, HubSource):
        fields[source.token_secret] = "spec.model.tokenSecretRef"
    return _advise_missing(endpoint, message, "Secret", fields)


def _advise_config_map(endpoint: Endpoint, message: str) -> str:
    limits = endpoint.spec.auth.limits
    return _advise_missing(
        endpoint, message, "ConfigMap", {limits.name: "spec.auth.limitsConfigMapRef"} if limits else {}
    )


def _advise_claim(endpoint: Endpoint, message: str) -> str:
    source, cache = endpoint.spec.model.source, endpoint.spec.cache
    fields: dict[str | None, str] = {}
    if isinstance(source, ClaimSource):
        fields[source.claim] = "spec.model.uri"
    if isinstance(cache, ExistingClaimCache):
        fields[cache.name] = "spec.cache.existingClaim"
    return _advise_missing(endpoint, message, "claim", fields)


def _advise_missing(endpoint: Endpoint, message: str, what: str, fields: Mapping[str | None, str]) -> str:
    field = next((field for name, field in fields.items() if name and name in message), "spec.runtime.env")
    return f"Create the {what} in namespace {endpoint.key.namespace}, or correct {field}"


def _advise_model(endpoint: Endpoint, _: str) -> str:
    if isinstance(endpoint.spec.model.source, ClaimSource):
        return "Correct spec.model.uri: its path begins at the claim's root, and the folder must hold config.json"
    return "Correct spec.model.uri or spec.model.revision; private repositories need spec.model.tokenSecretRef"


def _advise_gated(endpoint: Endpoint, _: str) -> str:
    source = endpoint.spec.model.source
    if isinstance(source, HubSource) and source.token_secret:
        secret = source.token_secret
        return f"Accept the model's terms with the token's account, and renew Secret {secret} if its token changes"
    return "Accept the model's terms on the hub and name a Secret with your token in spec.model.tokenSecretRef"


def _advise_unauthorized(endpoint: Endpoint, _: str) -> str:
    source = endpoint.spec.model.source
    if isinstance(source, HubSource) and source.token_secret:
        secret = source.token_secret
        return f"Renew the token in Secret {secret}, with the right to read the repository, or correct spec.model.uri"
    return "Correct spec.model.uri, or name a Secret with your token in spec.model.tokenSecretRef"


def _advise_disk(endpoint: Endpoint, _: str) -> str:
    cache = endpoint.spec.cache
    if isinstance(cache, OwnedClaimCache):
        return "Raise spec.cache.persistentVolumeClaim.size, or remove other models from the claim"
    if isinstance(cache, ExistingClaimCache):
        return f"Enlarge claim {cache.name}, or remove other models from it"
    if isinstance(cache, EmptyDirCache) and cache.size_limit:
        return f"Raise spec.cache.emptyDir.sizeLimit (now {cache.size_limit})"
    return "Give the model a claim in spec.cache, or nodes with a larger disk"


def _advise_device(endpoint: Endpoint, _: str) -> str:
    device = endpoint.spec.accelerator.resource_name
    where = f"Check the driver, and spec.scheduling.runtimeClassName, on nodes with {device}"
    return f"{where}; spec.accelerator.count 0 runs the model on CPU"


def _advise_memory(endpoint: Endpoint, _: str) -> str:
    limit = endpoint.spec.resources.limits.get("memory")
    now = f" (now {limit})" if limit else ""
    return f"Raise spec.resources.limits.memory{now}; loading takes about the size of the weights"


def _advise_crash(endpoint: Endpoint, _: str) -> str:
    return f"See kubectl logs --previous --namespace {endpoint.key.namespace} deploy/{endpoint.key.name}"


def _advise_pods(endpoint: Endpoint, _: str) -> str:
    return f"See {_describe_pods(endpoint)}"


def _advise_corrupt(endpoint: Endpoint, _: str) -> str:
    if isinstance(endpoint.spec.model.source, ClaimSource):
        return f"Copy the model to its claim again, then {_renew(endpoint)}"
    return f"Remove the model's folder from the cache, then {_renew(endpoint)}"


def _advise_admission(_: Endpoint, message: str) -> str:
    return next(
        (advice for said, advice in _GATEWAY_ANSWERS.items() if said in message),
        "Check spec.route.className against kubectl get ingressclasses, and that the controller runs",
    )


def _describe_pods(endpoint: Endpoint) -> str:
    return f"kubectl describe pods --namespace {endpoint.key.namespace} -l dedicate.dev/endpoint={endpoint.key.name}"


def _renew(endpoint: Endpoint) -> str:
    return f"kubectl delete pods --namespace {endpoint.key.namespace} -l dedicate.dev/endpoint={endpoint.key.name}"


# What controllers of Gateways answer, and where nothing more particular is said, the Gateway itself.
_GATEWAY_ANSWERS: Mapping[str, str] = {
    "NotAllowedByListeners": "Let this namespace into the Gateway: its listeners' allowedRoutes.namespaces",
    "NoMatchingListenerHostname": "Choose a spec.route.host that one of the Gateway's listeners is for",
    "NoMatchingParent": "Correct sectionName or port in spec.route.parentRefs",
    "Gateway ": "Check spec.route.parentRefs, kubectl describe gateway, and that the controller of its class runs",
}
_SENTENCES: Mapping[str, str] = {
    "QuotaExceeded": "Ask for more quota, or for less in spec.resources",
    "PodRefused": "Meet the cluster's policy by spec.scheduling or spec.runtime, or ask for an exception",
    "ChildRefused": "Correct the field that is named; nothing is tried again until the specification changes",
    "InvalidArguments": "Correct spec.runtime.args",
    "UnsupportedModel": "Choose another model; one that brings its own code needs spec.model.remoteCode Allow",
    "OutOfMemory": "Lower spec.model.maxModelLength, choose a smaller model or dtype, or a larger device",
    "ContextTooLong": "Lower spec.model.maxModelLength",
    "HubUnreachable": "Check DNS, proxy and spec.networkPolicy; HF_ENDPOINT in spec.runtime.env names a mirror",
    "StartupTimeout": "Raise spec.startup.timeoutSeconds, or let a claim in spec.cache keep the download",
    "ClassNotFound": "Correct spec.route.className, or install the controller of that class",
    "GatewayNotFound": "Correct spec.route.parentRefs, or the chart's route.parentRefs",
    "GatewayNotNamed": "Name a Gateway in spec.route.parentRefs, or in the chart's route.parentRefs",
    "GatewayAPINotInstalled": "Install the Gateway API (v1.2 or newer) and a controller, or set type Ingress",
    "CorruptFile": "It is fetched again; if it stays so, ask who runs the hub or the mirror, or replace the cache",
    "NameConflict": "Rename the endpoint, or remove what holds the name",
}
_ADVISORS: Mapping[str, Advisor] = {
    "Unschedulable": _advise_unschedulable,
    "ImagePull": _advise_image,
    "SecretNotFound": _advise_secret,
    "ConfigMapNotFound": _advise_config_map,
    "ClaimNotFound": _advise_claim,
    "ModelNotFound": _advise_model,
    "GatedRepo": _advise_gated,
    "Unauthorized": _advise_unauthorized,
    "DiskFull": _advise_disk,
    "ModelCorrupt": _advise_corrupt,
    "NotAdmitted": _advise_admission,
    "DeviceUnavailable": _advise_device,
    "OOMKilled": _advise_memory,
    "CrashLoop": _advise_crash,
    "InternalError": _advise_crash,
    "VolumeMount": _advise_pods,
    "ContainerConfig": _advise_pods,
    "ContainerStart": _advise_pods,
    "PodSandbox": _advise_pods,
}
ADVISED_REASONS = frozenset(_SENTENCES) | frozenset(_ADVISORS)
