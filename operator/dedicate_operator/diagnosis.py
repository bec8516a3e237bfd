"""Why pods do not serve: from their statuses and Events to one cause with a reason and a sentence.

Pure. Messages leave out what changes by itself (counters, back-off times), so that a pod that stays broken in the
same way causes no writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from dedicate_operator import names
from dedicate_operator.kinds import Json
from dedicate_operator.observed import find_condition

# Exit codes of a failed start of the runtime; docs/contract.md is the source.
EXIT_REASONS: Mapping[int, str] = {
    2: "InvalidArguments",
    10: "ModelNotFound",
    11: "GatedRepo",
    12: "ModelCorrupt",
    13: "UnsupportedModel",
    14: "DeviceUnavailable",
    15: "OutOfMemory",
    16: "DiskFull",
    17: "ContextTooLong",
    18: "HubUnreachable",
    19: "Unauthorized",
    20: "CorruptFile",
    70: "InternalError",
}
SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
CLAIM_NOT_FOUND = "ClaimNotFound"
CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
UNSCHEDULABLE = "Unschedulable"

_IMAGE_PULL_REASONS = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
)
_START_REASONS = frozenset({"CreateContainerError", "RunContainerError", "StartError", "ContainerCannotRun"})
_MISSING_SECRET = re.compile(
    r'secret "(?P<name>[^"]+)" not found|couldn\'t find key \S+ in Secret (?P<keyed>\S+)'
    r"|references non-existent secret key: (?P<key>\S+)"
)
_MISSING_CONFIG_MAP = re.compile(
    r'configmap "[^"]+" not found|couldn\'t find key \S+ in ConfigMap|references non-existent config key: '
)
_MISSING_CLAIM = re.compile(r'persistentvolumeclaim "[^"]+" not found')
_BACK_OFF_PREFIX = re.compile(r'^Back-off pulling image "[^"]*": (ErrImagePull: )?')


@dataclass(frozen=True, slots=True)
class Cause:
    """What keeps a pod from serving. `is_download`: the model cannot be had, which the download itself found out."""

    reason: str
    message: str
    is_download: bool = False


def diagnose(pods: Sequence[Json], events: Mapping[str, Sequence[Json]], *, startup_timeout_s: int) -> Cause | None:
    """Return the cause for the first pod that has one, the newest pods first.

    Args:
        pods: the pods to look at.
        events: Warning Events by the uid of the pod that they speak of.
        startup_timeout_s: the budget of the startup probe.
    """
    newest_first = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")), reverse=True)
    for pod in newest_first:
        cause = diagnose_pod(pod, events.get(pod["metadata"].get("uid", ""), ()), startup_timeout_s)
        if cause is not None:
            return cause
    return None


def diagnose_pod(pod: Json, events: Sequence[Json], startup_timeout_s: int) -> Cause | None:
    status = pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason"):
        return Cause(str(status["reason"]), str(status.get("message") or "the pod was ended by its node"))
    return (
        _diagnose_scheduling(pod)
        or _diagnose_download(find_download(pod))
        or _diagnose_container(_find_container(status), startup_timeout_s)
        or next(filter(None, map(_diagnose_event, events)), None)
    )


def is_waiting_for_volumes(pod: Json) -> bool:
    """Tell whether only the pod's Events can say what it waits for."""
    download = find_download(pod)
    container = _find_container(pod.get("status") or {}) if download is None or _has_ended(download) else download
    if container is None:
        scheduled = find_condition(pod, "PodScheduled")
        return scheduled is not None and scheduled.get("status") == "True"
    waiting = (container.get("state") or {}).get("waiting") or {}
    return waiting.get("reason") in {"ContainerCreating", "PodInitializing"}


def find_download(pod: Json) -> Json | None:
    """Return the status of the container that downloads the model, None where there is none."""
    containers: list[Json] = (pod.get("status") or {}).get("initContainerStatuses") or []
    return next((item for item in containers if item.get("name") == names.DOWNLOAD_CONTAINER), None)


def is_downloading(pod: Json) -> bool:
    """Tell whether the pod's download runs."""
    return "running" in ((find_download(pod) or {}).get("state") or {})


def diagnose_replica_failure(deployment: Json) -> Cause | None:
    """Return why the pods cannot even be created: a quota, or an admission policy."""
    condition = find_condition(deployment, "ReplicaFailure")
    if condition is None or condition.get("status") != "True":
        return None
    message = str(condition.get("message", ""))
    return Cause("QuotaExceeded" if "exceeded quota" in message else "PodRefused", message)


def _diagnose_scheduling(pod: Json) -> Cause | None:
    condition = find_condition(pod, "PodScheduled")
    if condition is None or condition.get("status") != "False":
        return None
    message = str(condition.get("message", ""))
    if _MISSING_CLAIM.search(message):
        return Cause(CLAIM_NOT_FOUND, message)
    if condition.get("reason") == UNSCHEDULABLE:
        return Cause(UNSCHEDULABLE, message)
    return Cause(str(condition.get("reason") or UNSCHEDULABLE), message)


def _has_ended(download: Json) -> bool:
    terminated = (download.get("state") or {}).get("terminated") or {}
    return terminated.get("exitCode") == 0


def _diagnose_download(download: Json | None) -> Cause | None:
    """Like the runtime's container; only that there is no time within which a download has to end."""
    if download is None or _has_ended(download):
        return None
    cause = _diagnose_container(download, startup_timeout_s=None)
    is_own = cause is not None and cause.reason in EXIT_REASONS.values()
    return replace(cause, is_download=True) if cause is not None and is_own else cause


def _diagnose_container(container: Json | None, startup_timeout_s: int | None) -> Cause | None:
    if container is None:
        return None
    state, last = container.get("state") or {}, container.get("lastState") or {}
    waiting = state.get("waiting") or {}
    reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if reason in _IMAGE_PULL_REASONS:
        return Cause("ImagePull", _BACK_OFF_PREFIX.sub("", message) or f"{container.get('image')} cannot be pulled")
    if reason == "CreateContainerConfigError":
        return Cause(_find_missing(message) or "ContainerConfig", message)
    if reason in _START_REASONS:
        return Cause("ContainerStart", message)
    terminated = state.get("terminated") or last.get("terminated")
    # After a crash that it survived the container is healthy again once it is ready.
    if terminated is None or container.get("ready"):
        return None
    return _diagnose_exit(terminated, has_started=bool(container.get("started")), timeout_s=startup_timeout_s)


def _diagnose_exit(terminated: Mapping[str, Any], *, has_started: bool, timeout_s: int | None) -> Cause | None:
    what = "the download" if timeout_s is None else "the runtime"
    code, reason = int(terminated.get("exitCode", 0)), str(terminated.get("reason", ""))
    message = str(terminated.get("message") or "").strip()
    if reason == "OOMKilled":
        return Cause("OOMKilled", message or "the container exceeded spec.resources.limits.memory")
    if reason in _START_REASONS:
        return Cause("ContainerStart", message)
    if code in EXIT_REASONS:
        return Cause(EXIT_REASONS[code], message or f"{what} ended with exit code {code}")
    if timeout_s is not None and not has_started and _ran_for_s(terminated) >= timeout_s:
        return Cause("StartupTimeout", f"the model was not ready within spec.startup.timeoutSeconds ({timeout_s} s)")
    if code == 0:
        return None
    return Cause("CrashLoop", f"{what} ended with exit code {code}" + (f": {message}" if message else ""))


def _diagnose_event(event: Json) -> Cause | None:
    reason, message = event.get("reason"), str(event.get("message", ""))
    if reason in {"FailedMount", "FailedAttachVolume"}:
        return Cause(_find_missing(message) or "VolumeMount", message)
    if reason == "FailedCreatePodSandBox":
        return Cause("PodSandbox", message)
    return None


def _find_missing(message: str) -> str | None:
    """Return the reason for an object, or an entry of one, that the kubelet looks for in vain."""
    if _MISSING_SECRET.search(message):
        return SECRET_NOT_FOUND
    if _MISSING_CONFIG_MAP.search(message):
        return CONFIG_MAP_NOT_FOUND
    return CLAIM_NOT_FOUND if _MISSING_CLAIM.search(message) else None


def _find_container(status: Json) -> Json | None:
    containers: list[Json] = status.get("containerStatuses") or []
    return next((item for item in containers if item.get("name") == names.CONTAINER), None)


def _ran_for_s(terminated: Mapping[str, Any]) -> float:
    try:
        started, finished = (datetime.fromisoformat(terminated[key]) for key in ("startedAt", "finishedAt"))
    except (KeyError, TypeError, ValueError):
        return 0.0
    return (finished - started).total_seconds()
