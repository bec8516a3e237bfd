"""Turns the custom resource, as the API server gave it, into the values of `spec`.

The CRD refuses most of what is refused here; both stand because a cluster's CRD may be of another version than the
operator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast, get_args

from dedicate_operator.errors import SpecError
from dedicate_operator.fields import Fields
from dedicate_operator.identity import Key
from dedicate_operator.routes import ControllerProfile, RouteType, parse_parent_refs
from dedicate_operator.spec import (
    Accelerator,
    AccessMode,
    Auth,
    AuthMode,
    Autoscaling,
    Cache,
    ClaimSource,
    ConfigMapEntry,
    Dtype,
    EmptyDirCache,
    Endpoint,
    EndpointSpec,
    ExistingClaimCache,
    HubSource,
    ImageSource,
    Model,
    NetworkPolicy,
    NetworkPolicyMode,
    OwnedClaimCache,
    RemoteCode,
    Resources,
    RetentionPolicy,
    RolloutStrategy,
    Route,
    Runtime,
    SamplingDefaults,
    ScalingMetric,
    Scheduling,
    Source,
    UpgradePolicy,
)

RESERVED_SEGMENTS = frozenset({"v1", "docs", "healthz", "readyz", "metrics"})
# Leaves room for the children's suffixes within a label's 63 characters.
MAX_NAME_LENGTH = 40

_SEGMENT = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_HUB_URI = re.compile(r"hf://(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*)")
_CLAIM_URI = re.compile(
    r"pvc://(?P<claim>[a-z0-9]([-a-z0-9.]*[a-z0-9])?)/?(?P<path>[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*)?"
)
_CACHE_SIZE = re.compile(r"[1-9][0-9]*(k|Ki|M|Mi|G|Gi|T|Ti)?")
_BODY_SIZE = re.compile(r"[1-9][0-9]*(Ki|Mi|Gi)")
_IMAGE_URI = re.compile(r"oci://(?P<reference>[A-Za-z0-9][A-Za-z0-9._:/@-]*)")


def parse_endpoint(resource: Mapping[str, Any]) -> Endpoint:
    """Turn the custom resource, as the API server gave it, into an `Endpoint`.

    Raises:
        SpecError: a field holds what cannot be served.
    """
    metadata = resource["metadata"]
    key = Key(metadata["namespace"], metadata["name"])
    if len(key.name) > MAX_NAME_LENGTH:
        raise SpecError("metadata.name", f"must have at most {MAX_NAME_LENGTH} characters")
    document = resource.get("spec") or {}
    return Endpoint(
        key=key,
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=parse_spec(document, key.name),
        document=document,
    )


def parse_spec(document: Mapping[str, Any], name: str) -> EndpointSpec:
    """Turn the specification of the endpoint of that name into its values.

    Raises:
        SpecError: a field holds what cannot be served.
    """
    spec = Fields(document, "spec")
    termination, rollout = spec.child("termination"), spec.child("rollout")
    model = _parse_model(spec.child("model"))
    cache = spec.optional_child("cache")
    if cache is not None and not isinstance(model.source, HubSource):
        raise spec.error("cache", "goes with an hf:// model only")
    default_cache = EmptyDirCache() if isinstance(model.source, HubSource) else None
    return EndpointSpec(
        dedicate=_parse_segment(spec, name),
        model=model,
        cache=default_cache if cache is None else _parse_cache(cache),
        is_suspended=spec.boolean("suspend", default=False),
        replicas=spec.integer("replicas", 1),
        runtime=_parse_runtime(spec.child("runtime")),
        accelerator=_parse_accelerator(spec.child("accelerator")),
        resources=Resources(
            requests=spec.child("resources").quantities("requests"),
            limits=spec.child("resources").quantities("limits"),
        ),
        scheduling=_parse_scheduling(spec.child("scheduling")),
        startup_timeout_s=spec.child("startup").integer("timeoutSeconds", 1800),
        pre_stop_s=termination.integer("preStopSeconds", 15),
        drain_s=termination.integer("drainSeconds", 300),
        rollout_strategy=cast("RolloutStrategy", rollout.choice("strategy", get_args(RolloutStrategy), "Auto")),
        progress_deadline_s=rollout.optional_integer("progressDeadlineSeconds"),
        autoscaling=_parse_autoscaling(spec.child("autoscaling")) if spec.has("autoscaling") else None,
        min_available=spec.child("disruption").optional_integer("minAvailable"),
        auth=_parse_auth(spec.child("auth")),
        route=_parse_route(spec.child("route")),
        network_policy=_parse_network_policy(spec.child("networkPolicy")),
    )


def _parse_segment(spec: Fields, name: str) -> str:
    segment = spec.optional_text("dedicate") or name
    if not _SEGMENT.fullmatch(segment) or len(segment) > MAX_NAME_LENGTH:
        raise spec.error("dedicate", f"must be a DNS label of at most {MAX_NAME_LENGTH} characters")
    if segment in RESERVED_SEGMENTS:
        raise spec.error("dedicate", f"must not be {segment}, which is reserved")
    return segment


def _parse_model(model: Fields) -> Model:
    return Model(
        source=_parse_source(model),
        served_name=model.optional_text("servedName"),
        dtype=cast("Dtype", model.choice("dtype", get_args(Dtype), "Auto")),
        max_length_tokens=model.optional_integer("maxModelLength"),
        remote_code=cast("RemoteCode", model.choice("remoteCode", get_args(RemoteCode), "Deny")),
        sampling_defaults=cast(
            "SamplingDefaults", model.choice("samplingDefaults", get_args(SamplingDefaults), "Specification")
        ),
    )


def _parse_source(model: Fields) -> Source:
    uri = model.text("uri")
    if match := _HUB_URI.fullmatch(uri):
        token = model.optional_child("tokenSecretRef")
        return HubSource(
            repository=match["repository"],
            revision=model.optional_text("revision"),
            token_secret=token.text("name") if token else None,
            token_key=(token.optional_text("key") if token else None) or "token",
        )
    for name in ("revision", "tokenSecretRef"):
        if model.has(name):
            raise model.error(name, "goes with an hf:// model only")
    if match := _CLAIM_URI.fullmatch(uri):
        return ClaimSource(claim=match["claim"], path=match["path"] or "")
    if match := _IMAGE_URI.fullmatch(uri):
        return ImageSource(match["reference"])
    raise model.error("uri", f"must be hf://organisation/name, pvc://claim/path or oci://image, not {uri!r}")


def _parse_cache(cache: Fields) -> Cache:
    kinds = [name for name in ("emptyDir", "persistentVolumeClaim", "existingClaim") if cache.has(name)]
    if kinds == ["emptyDir"]:
        limit = cache.child("emptyDir").optional_match("sizeLimit", _CACHE_SIZE, "a quantity such as 100Gi")
        return EmptyDirCache(size_limit=limit)
    if kinds == ["existingClaim"]:
        return ExistingClaimCache(name=cache.child("existingClaim").text("name"))
    if kinds == ["persistentVolumeClaim"]:
        claim = cache.child("persistentVolumeClaim")
        return OwnedClaimCache(
            size=claim.text("size"),
            access_mode=cast("AccessMode", claim.choice("accessMode", get_args(AccessMode), "ReadWriteOnce")),
            storage_class_name=claim.optional_text("storageClassName"),
            retention_policy=cast(
                "RetentionPolicy", claim.choice("retentionPolicy", get_args(RetentionPolicy), "Retain")
            ),
        )
    raise SpecError(cache.path, "must have exactly one of emptyDir, persistentVolumeClaim, existingClaim")


def _parse_runtime(runtime: Fields) -> Runtime:
    return Runtime(
        image=runtime.optional_text("image"),
        image_pull_secrets=tuple(item.text("name") for item in runtime.children("imagePullSecrets")),
        args=runtime.texts("args"),
        env=runtime.json_objects("env"),
        upgrade_policy=cast("UpgradePolicy", runtime.choice("upgradePolicy", get_args(UpgradePolicy), "OnSpecChange")),
    )


def _parse_accelerator(accelerator: Fields) -> Accelerator:
    return Accelerator(
        resource_name=accelerator.optional_text("resourceName") or "nvidia.com/gpu",
        count=accelerator.integer("count", 1),
        shared_memory=accelerator.optional_text("sharedMemory") or "1Gi",
    )


def _parse_scheduling(scheduling: Fields) -> Scheduling:
    return Scheduling(
        node_selector=scheduling.text_map("nodeSelector"),
        tolerations=scheduling.json_objects("tolerations"),
        affinity=scheduling.json_object("affinity"),
        topology_spread_constraints=scheduling.json_objects("topologySpreadConstraints"),
        runtime_class_name=scheduling.optional_text("runtimeClassName"),
        priority_class_name=scheduling.optional_text("priorityClassName"),
    )


def _parse_autoscaling(autoscaling: Fields) -> Autoscaling:
    metric = autoscaling.child("metric")
    parsed = Autoscaling(
        max_replicas=autoscaling.required_integer("maxReplicas"),
        target_value=metric.required_integer("targetValue"),
        min_replicas=autoscaling.integer("minReplicas", 1),
        metric=cast("ScalingMetric", metric.choice("type", get_args(ScalingMetric), "ActiveRequests")),
        scale_down_delay_s=autoscaling.integer("scaleDownDelaySeconds", 300),
    )
    if not 1 <= parsed.min_replicas <= parsed.max_replicas:
        raise autoscaling.error("minReplicas", "must be at least 1 and at most maxReplicas")
    return parsed


def _parse_auth(auth: Fields) -> Auth:
    secret = auth.optional_child("apiKeysSecretRef")
    limits = auth.optional_child("limitsConfigMapRef")
    return Auth(
        mode=cast("AuthMode", auth.choice("mode", get_args(AuthMode), "APIKey")),
        api_keys_secret=secret.text("name") if secret else None,
        limits=ConfigMapEntry(limits.text("name"), limits.optional_text("key") or "limits.yaml") if limits else None,
    )


def _parse_route(route: Fields) -> Route:
    tls = route.optional_child("tls")
    return Route(
        type=cast("RouteType | None", route.optional_choice("type", get_args(RouteType))),
        host=route.optional_text("host"),
        class_name=route.optional_text("className"),
        controller_profile=cast(
            "ControllerProfile | None", route.optional_choice("controllerProfile", get_args(ControllerProfile))
        ),
        parent_refs=parse_parent_refs(route, "parentRefs"),
        is_tls=tls is not None,
        tls_secret=tls.optional_text("secretName") if tls else None,
        request_timeout_s=route.optional_integer("requestTimeoutSeconds"),
        max_body_size=route.optional_match("maxBodySize", _BODY_SIZE, "a size such as 32Mi"),
    )


def _parse_network_policy(policy: Fields) -> NetworkPolicy:
    mode = policy.choice("mode", get_args(NetworkPolicyMode), "Restricted") if policy.has("mode") else None
    return NetworkPolicy(
        mode=cast("NetworkPolicyMode | None", mode),
        allow_from=policy.json_objects("allowFrom"),
    )
