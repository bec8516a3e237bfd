"""Whether an endpoint's model is where its pods can load it, of which commit it is, and how far a download has come.

A download tells its outcome in the pod's status, by the termination message of its container: the commit, or what went
wrong. What it tells while it runs comes by `Situation.progress`. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from dedicate_operator import names
from dedicate_operator.diagnosis import find_download
from dedicate_operator.kinds import Json
from dedicate_operator.situation import Condition, DownloadProgress, Situation
from dedicate_operator.spec import ClaimSource, HubSource
from dedicate_operator.workload import Workload

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_BYTES = 2**53 - 1
_TYPE = "ModelCached"
# Stages in which a download is past what made an earlier one fail.
_MOVING = frozenset({"downloading", "waiting"})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a download that succeeded said."""

    commit: str
    num_bytes: int


def find_commit(situation: Situation) -> str | None:
    """Return the commit that the endpoint serves: the first that what it asks for was resolved to."""
    source = situation.endpoint.spec.model.source
    if not isinstance(source, HubSource):
        return None
    if source.commit or situation.pinned:
        return source.commit or situation.pinned
    first = next(_iterate_outcomes(situation), None)
    return first.commit if first else None


def read_pinned(source: HubSource, status: Json) -> str | None:
    """Return the commit that the status records for what the specification asks for now."""
    model = status.get("model") or {}
    commit = model.get("resolvedRevision")
    return commit if model.get("resolvedFrom") == source.request and _is_commit(commit) else None


def build_cached(situation: Situation, workload: Workload) -> Condition:
    source = situation.endpoint.spec.model.source
    if not isinstance(source, HubSource):
        what = f"claim {source.claim}" if isinstance(source, ClaimSource) else f"image {source.reference}"
        return Condition(_TYPE, "True", "NotNeeded", f"the pods mount the {what}: nothing is downloaded")
    outcomes, progress, cause = list(_iterate_outcomes(situation)), situation.progress, workload.cause
    if outcomes:
        return Condition(_TYPE, "True", "Loaded", _describe_loaded(situation, outcomes))
    is_moving = progress is not None and progress.stage in _MOVING
    if cause is not None and cause.is_download and not is_moving:
        return Condition(_TYPE, "False", cause.reason, cause.message)
    if progress is not None:
        return Condition(_TYPE, "False", "Downloading", _describe_progress(progress))
    if workload.num_downloading:
        return Condition(_TYPE, "False", "Downloading", "the download has begun")
    if workload.num_ready_current:
        return Condition(_TYPE, "True", "Loaded", "the pods serve it")
    return Condition(_TYPE, "Unknown", "NotStarted", "no pod has begun to download the model")


def build_model_status(situation: Situation, cached: Condition) -> Json:
    """Return `status.model`."""
    model: Json = {"name": situation.endpoint.spec.model.served_names[0], "cacheState": _find_state(cached)}
    source = situation.endpoint.spec.model.source
    commit = find_commit(situation)
    if isinstance(source, HubSource) and commit is not None:
        model |= {"resolvedFrom": source.request, "resolvedRevision": commit}
    outcome = next((found for found in _iterate_outcomes(situation) if found.commit == commit), None)
    if outcome is not None:
        model |= {"downloadedBytes": outcome.num_bytes, "totalBytes": outcome.num_bytes}
    elif situation.progress is not None and situation.progress.total_bytes:
        progress = situation.progress
        model |= {"downloadedBytes": progress.downloaded_bytes, "totalBytes": progress.total_bytes}
    return model


def _find_state(cached: Condition) -> str:
    if cached.status == "Unknown" or cached.reason in {"Downloading", "NotNeeded"}:
        return cached.reason
    return "Loaded" if cached.status == "True" else "Failed"


def _iterate_outcomes(situation: Situation) -> Iterator[Outcome]:
    """Yield what the downloads of the present specification said, the oldest pod's first."""
    pods = sorted(situation.observed.pods, key=_age)
    for pod in pods:
        if not _asks_for_the_same(pod, situation):
            continue
        terminated = ((find_download(pod) or {}).get("state") or {}).get("terminated") or {}
        outcome = _parse_outcome(terminated) if terminated.get("exitCode") == 0 else None
        if outcome is not None:
            yield outcome


def _asks_for_the_same(pod: Json, situation: Situation) -> bool:
    """Tell whether a pod downloads what the specification asks for, which other changes of it leave as it is."""
    source = situation.endpoint.spec.model.source
    containers: Sequence[Json] = (pod.get("spec") or {}).get("initContainers") or []
    args = next((item.get("args") or [] for item in containers if item.get("name") == names.DOWNLOAD_CONTAINER), [])
    return isinstance(source, HubSource) and _read_request(args) == source.request


def _read_request(args: Sequence[str]) -> str | None:
    given = dict(pairwise(args))
    return f"{given.get('--model')}@{given.get('--revision', 'main')}"


def _parse_outcome(terminated: Json) -> Outcome | None:
    try:
        document = json.loads(terminated.get("message") or "")
        commit, num_bytes = document["commit"], document["bytes"]
    except (ValueError, KeyError, TypeError):
        return None
    if not _is_commit(commit) or isinstance(num_bytes, bool) or not isinstance(num_bytes, int):
        return None
    return Outcome(commit, num_bytes) if 0 <= num_bytes <= _MAX_BYTES else None


def _is_commit(value: object) -> bool:
    return isinstance(value, str) and _COMMIT.fullmatch(value) is not None


def _age(pod: Json) -> tuple[str, str]:
    metadata = pod["metadata"]
    return str(metadata.get("creationTimestamp", "")), str(metadata.get("name", ""))


def _describe_loaded(situation: Situation, outcomes: Sequence[Outcome]) -> str:
    commit = find_commit(situation)
    others = sorted({outcome.commit for outcome in outcomes if outcome.commit != commit})
    size = next((_format_bytes(outcome.num_bytes) for outcome in outcomes if outcome.commit == commit), None)
    sentence = f"commit {commit} is in the cache" + (f", {size}" if size else "")
    if others:
        # Pods that began before anything was pinned, each with a cache of its own, while the branch moved.
        sentence += f"; pods that began at the same time have {', '.join(others)}: delete them"
    return sentence


def _describe_progress(progress: DownloadProgress) -> str:
    total = progress.total_bytes
    sentence = {
        "resolving": "the hub is asked for the commit and its files",
        "verifying": f"{_format_bytes(total)} are verified",
        "waiting": f"{_describe_amount(progress)}; another pod downloads for all",
    }.get(progress.stage, _describe_amount(progress))
    return sentence + (f"; {progress.trouble}" if progress.trouble else "")


def _describe_amount(progress: DownloadProgress) -> str:
    if not progress.total_bytes:
        return "the download has begun"
    unit, name = (10**9, "GB") if progress.total_bytes >= 10**8 else (10**6, "MB")
    return f"{progress.downloaded_bytes / unit:.1f} of {progress.total_bytes / unit:.1f} {name}"


def _format_bytes(num_bytes: int) -> str:
    """Write an amount in decimal units, as disks' labels have it."""
    return f"{num_bytes / 10**9:.1f} GB" if num_bytes >= 10**8 else f"{num_bytes / 10**6:.1f} MB"
