"""One pass over one endpoint: look, compare, write what differs, say how it stands.

The same for every event. It reads the store, asks the API server only before it creates something, and writes only
what is not as it should be; a pass over an endpoint that is fine costs no request.
"""

from __future__ import annotations

import logging
import secrets
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from dedicate_operator import names
from dedicate_operator.cluster import ResourceList
from dedicate_operator.desired import Plan, build_desired, plan_writes
from dedicate_operator.diagnosis import SECRET_NOT_FOUND, is_waiting_for_volumes
from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import ENDPOINT, EVENT, POD, Json, Kind, kind_of
from dedicate_operator.manifests import build_keys_secret
from dedicate_operator.observed import is_leftover, is_owned, is_terminating
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.status import (
    MAX_MESSAGE_LENGTH,
    Refusal,
    Situation,
    build_invalid_status,
    build_status,
    find_news,
    is_ready,
    stamp_transitions,
)
from dedicate_operator.store import EndpointRecord, Store

_LOG = logging.getLogger(__name__)

# Events of pods are not watched; while a pod waits for volumes they are asked for this often.
_EVENTS_PERIOD_S = 3.0
# Objects of others are not watched either; a conflict is looked at again this often.
_CONFLICT_PERIOD_S = 30.0
# An old endpoint's children go with the garbage collector, whose deletions are seen; this is the longest wait.
_LEFTOVER_PERIOD_S = 5.0
# Entropy of a generated key, twice what guessing needs.
_KEY_BYTES = 32
_MISSING = "missing"
# Reasons of conditions that are False in the ordinary course of things.
_USUAL_REASONS = frozenset({"UpToDate", "Starting", "Suspended", "ScaledToZero", "NotAdmitted"})


class ClusterApi(Protocol):
    """What a reconcile asks of the API server."""

    async def fetch(self, kind: Kind, key: Key) -> Json | None: ...

    async def fetch_list(
        self, kind: Kind, namespace: str | None, *, labels: str | None = None, fields: str | None = None
    ) -> ResourceList: ...

    async def apply(self, manifest: Json) -> Json: ...

    async def overwrite(self, manifest: Json) -> Json: ...

    async def apply_status(self, key: Key, uid: str, status: Json) -> Json: ...

    async def create_secret(self, manifest: Json) -> bool: ...

    async def create_event(self, manifest: Json) -> None: ...

    async def delete(self, kind: Kind, key: Key) -> None: ...


class Reconciler:
    """Brings endpoints and cluster together, one key at a time."""

    def __init__(
        self, cluster: ClusterApi, store: Store, defaults: EndpointDefaults, *, now: Callable[[], datetime]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._defaults = defaults
        self._now = now

    async def reconcile(self, key: Key) -> float | None:
        """Make one pass; return after how many seconds another one is due even if no event comes.

        Raises:
            ClusterError: a request failed; the pass is to be repeated.
        """
        record = self._store.record(key)
        if record is None or is_terminating(record.resource):
            return None
        if record.endpoint is None:
            await self._publish(record, build_invalid_status(_generation(record), str(record.error)))
            return None
        refusal = self._find_path_conflict(record, record.endpoint)
        is_routed = record.claim is not None and refusal is None
        desired = build_desired(record.endpoint, self._defaults, is_routed=is_routed)
        plan = plan_writes(record.endpoint, desired, self._store.observed(key))
        requeue_s = _CONFLICT_PERIOD_S if refusal else None
        try:
            name_conflict, leftover = await self._write(record, record.endpoint, plan)
        except _EndpointGoneError:
            return None
        except ClusterError as error:
            if error.is_retryable or error.is_not_found:
                raise
            name_conflict, leftover = Refusal(_refused_reason(error), str(error)), False
        if name_conflict:
            refusal, requeue_s = name_conflict, _CONFLICT_PERIOD_S
        if leftover:
            requeue_s = _LEFTOVER_PERIOD_S
        return await self._report(record, record.endpoint, refusal, requeue_s)

    def _find_path_conflict(self, record: EndpointRecord, endpoint: Endpoint) -> Refusal | None:
        if record.claim is None:
            return None
        owner = self._store.find_route_owner(record.claim)
        if owner is None or owner == endpoint.key:
            return None
        host = record.claim[0] or "any host"
        return Refusal(
            "PathConflict",
            f"the path /{endpoint.spec.dedicate} on {host} belongs to {owner}, which is older; choose another "
            "spec.dedicate or spec.route.host, in a new endpoint, or delete the other one",
        )

    async def _write(self, record: EndpointRecord, endpoint: Endpoint, plan: Plan) -> tuple[Refusal | None, bool]:
        """Carry the plan out; return what stands in the way, and whether that only has to be waited for."""
        if plan.missing:
            await self._check_alive(record)
        foreign = list(plan.foreign)
        for manifest in plan.missing:
            present = await self._cluster.fetch(kind_of(manifest), _key_of(manifest))
            if present is not None and not is_owned(kind_of(manifest), present, endpoint):
                foreign.append({"kind": manifest["kind"], **present})
        strangers = [child for child in foreign if not is_leftover(child, endpoint)]
        if strangers:
            taken = ", ".join(f"{child.get('kind')} {child['metadata']['name']}" for child in strangers)
            return Refusal("NameConflict", f"{taken} exists and belongs to somebody else; it is left alone"), False
        if foreign:
            return None, True
        await self._ensure_keys(record, endpoint)
        for manifest in plan.missing:
            await self._apply(manifest, _MISSING)
        for manifest, path in plan.drifted:
            await self._apply(manifest, path)
        for kind, name in plan.obsolete:
            _LOG.info("deleting", extra={"endpoint": str(endpoint.key), "kind": str(kind), "child": name})
            await self._cluster.delete(kind, Key(endpoint.key.namespace, name))
        return None, False

    async def _check_alive(self, record: EndpointRecord) -> None:
        """Look at the endpoint itself: nothing is created for one that is gone or going, whatever the watch says."""
        key = Key(record.resource["metadata"]["namespace"], record.resource["metadata"]["name"])
        live = await self._cluster.fetch(ENDPOINT, key)
        if live is None or live["metadata"]["uid"] != record.uid:
            self._store.remove_endpoint(key, record.uid)
            raise _EndpointGoneError
        if is_terminating(live):
            self._store.put_endpoint(live)
            raise _EndpointGoneError

    async def _apply(self, manifest: Json, why: str) -> None:
        kind, key = kind_of(manifest), _key_of(manifest)
        try:
            child = await self._cluster.apply(manifest)
        except ClusterError as error:
            if not error.is_invalid or why == _MISSING:
                raise
            # Somebody turned a list's item into another one; merged with ours the two may contradict each other.
            child = await self._cluster.overwrite(manifest)
        self._store.put_child(kind, child)
        _LOG.info("applied", extra={"kind": str(kind), "child": str(key), "why": why})

    async def _ensure_keys(self, record: EndpointRecord, endpoint: Endpoint) -> None:
        """Create the generated key's Secret where it was never made, or where a pod says that it is gone."""
        if endpoint.spec.auth.mode == "None" or endpoint.spec.auth.api_keys_secret is not None:
            return
        name = names.keys_secret_name(endpoint.key.name)
        is_recorded = (record.status.get("auth") or {}).get("secretName") == name
        if not is_recorded or _says_secret_is_missing(record.status, name):
            key = secrets.token_urlsafe(_KEY_BYTES)
            is_created = await self._cluster.create_secret(build_keys_secret(endpoint, key))
            if is_created:
                _LOG.info("created the API-key Secret", extra={"endpoint": str(endpoint.key), "secret": name})

    async def _report(
        self, record: EndpointRecord, endpoint: Endpoint, refusal: Refusal | None, requeue_s: float | None
    ) -> float | None:
        observed = self._store.observed(endpoint.key)
        situation = Situation(endpoint, self._defaults, observed, refusal)
        waiting = [pod for pod in observed.pods if not is_ready(pod) and is_waiting_for_volumes(pod)]
        if waiting:
            situation = replace(situation, events=await self._fetch_events(waiting))
            requeue_s = min(_EVENTS_PERIOD_S, requeue_s or _EVENTS_PERIOD_S)
        await self._publish(record, build_status(situation))
        return requeue_s

    async def _fetch_events(self, pods: Sequence[Json]) -> dict[str, list[Json]]:
        events: dict[str, list[Json]] = {}
        # Replicas wait for the same reason; three are looked at, which bounds the requests.
        for pod in pods[:3]:
            uid, namespace = pod["metadata"]["uid"], pod["metadata"]["namespace"]
            fields = f"involvedObject.kind={POD.kind},involvedObject.uid={uid},type=Warning"
            found = await self._cluster.fetch_list(EVENT, namespace, fields=fields)
            events[uid] = sorted(found.items, key=_event_time, reverse=True)
        return events

    async def _publish(self, record: EndpointRecord, status: Json) -> None:
        """Write the status if it differs from the one that stands, and tell what changed as Events."""
        stamped = stamp_transitions(status, record.status, self._now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        if stamped == record.status:
            return
        key = Key(record.resource["metadata"]["namespace"], record.resource["metadata"]["name"])
        try:
            resource = await self._cluster.apply_status(key, record.uid, stamped)
        except ClusterError as error:
            if error.is_not_found:
                return
            raise
        self._store.put_endpoint(resource)
        for condition in find_news(stamped, record.status):
            await self._tell(record, condition)

    async def _tell(self, record: EndpointRecord, condition: Json) -> None:
        manifest = _build_event(record, condition, self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        try:
            await self._cluster.create_event(manifest)
        except ClusterError as error:
            # An Event is a courtesy; the condition has been written.
            _LOG.warning("event not recorded", extra={"reason": condition["reason"], "error": str(error)})


class _EndpointGoneError(Exception):
    """The endpoint was deleted while the store still had it."""


def _build_event(record: EndpointRecord, condition: Json, now: str) -> Json:
    metadata = record.resource["metadata"]
    is_fine = condition["status"] == "True" or condition["reason"] in _USUAL_REASONS
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}"},
        "involvedObject": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion"),
        },
        "type": "Normal" if is_fine else "Warning",
        "reason": condition["reason"],
        "message": f"{condition['type']} is {condition['status']}: {condition['message']}"[:MAX_MESSAGE_LENGTH],
        "action": "Reconcile",
        "reportingComponent": names.FIELD_MANAGER,
        "reportingInstance": names.FIELD_MANAGER,
        "source": {"component": names.FIELD_MANAGER},
        "firstTimestamp": f"{now[:19]}Z",
        "lastTimestamp": f"{now[:19]}Z",
        "eventTime": now,
        "count": 1,
    }


def _says_secret_is_missing(status: Json, name: str) -> bool:
    return any(
        condition["reason"] == SECRET_NOT_FOUND and f'"{name}"' in condition["message"]
        for condition in status.get("conditions") or []
    )


def _refused_reason(error: ClusterError) -> str:
    return "QuotaExceeded" if error.code == 403 and "exceeded quota" in str(error) else "ChildRefused"


def _generation(record: EndpointRecord) -> int:
    generation: int = record.resource["metadata"].get("generation", 0)
    return generation


def _key_of(manifest: Json) -> Key:
    return Key(manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
