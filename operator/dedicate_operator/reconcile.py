"""One pass over one endpoint: look, compare, write what differs, say how it stands.

The same for every event. It reads the store, asks the API server only before it creates something, and writes only
what is not as it should be; a pass over an endpoint that is fine costs no request. Each write names what was seen, so
that one that was decided on something older is refused, and the pass repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from dedicate_operator.apikeys import ApiKeys, SecretCreator
from dedicate_operator.autoscaler import build_autoscaler, select_scaler
from dedicate_operator.caching import find_commit, read_pinned
from dedicate_operator.cluster import ResourceList
from dedicate_operator.desired import Plan, build_desired, plan_writes
from dedicate_operator.diagnosis import is_waiting_for_volumes
from dedicate_operator.downloads import Downloads
from dedicate_operator.errors import ClusterError
from dedicate_operator.handover import plan_handover
from dedicate_operator.identity import Key
from dedicate_operator.kinds import DEPLOYMENT, ENDPOINT, EVENT, POD, SCALED_OBJECT, Json, Kind, kind_of
from dedicate_operator.observed import Observed, is_leftover, is_owned, is_terminating
from dedicate_operator.pins import ConfigMapCreator, Pins
from dedicate_operator.rendering import plan_rendering
from dedicate_operator.reporting import Reporter, StatusWriter
from dedicate_operator.scaling import plan_replicas
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.situation import Refusal, Situation
from dedicate_operator.spec import Endpoint, HubSource, ImageSource
from dedicate_operator.status import build_invalid_status, build_status
from dedicate_operator.store import EndpointRecord, Store, key_of
from dedicate_operator.workload import is_awaiting_accelerator, is_ready

_LOG = logging.getLogger(__name__)

# Events of pods are not watched; while a pod waits for volumes they are asked for this often.
_EVENTS_PERIOD_S = 3.0
# Objects of others are not watched either; what stands in the way is looked at again this often.
_REFUSAL_PERIOD_S = 30.0
# An old endpoint's children go with the garbage collector, whose deletions are seen; this is the longest wait.
_LEFTOVER_PERIOD_S = 5.0
# Replicas mostly wait for the same thing, so the Events of a few tell enough.
_MAX_PODS_ASKED = 3

_MISSING = "missing"
# An API server that knows the field and leaves it out, and one that does not know it.
_IMAGE_LEFT_OUT = "the image volume is left out"
_NO_IMAGE_VOLUMES = (_IMAGE_LEFT_OUT, ".image: field not declared in schema")
_UNLABELLED = "metadata.labels"


class ClusterApi(SecretCreator, ConfigMapCreator, StatusWriter, Protocol):
    """What a reconcile asks of the API server."""

    async def fetch(self, kind: Kind, key: Key) -> Json | None: ...

    async def fetch_list(
        self, kind: Kind, namespace: str | None, *, labels: str | None = None, fields: str | None = None
    ) -> ResourceList: ...

    async def apply(self, manifest: Json, seen: Json | None) -> Json: ...

    async def try_apply(self, manifest: Json) -> Json: ...

    async def overwrite(self, manifest: Json, seen: Json) -> Json: ...

    async def delete(self, kind: Kind, seen: Json) -> None: ...


class Reconciler:
    """Brings endpoints and cluster together, one key at a time."""

    def __init__(
        self,
        cluster: ClusterApi,
        store: Store,
        defaults: EndpointDefaults,
        *,
        downloads: Downloads,
        now: Callable[[], datetime],
        has_backlog: Callable[[], bool] = lambda: False,
    ) -> None:
        """Begin with nothing known.

        `has_backlog` tells whether many endpoints wait: then each is given its children first, and its status after
        all of them, when most of what it says has happened.
        """
        self._cluster = cluster
        self._store = store
        self._defaults = defaults
        self._has_backlog = has_backlog
        self._now = now
        self._api_keys = ApiKeys(cluster, now=now)
        self._pins = Pins(cluster)
        self._downloads = downloads
        self._reporter = Reporter(cluster, store, now=now)

    async def reconcile(self, key: Key) -> float | None:
        """Make one pass; return after how many seconds another one is due even if no event comes.

        Raises:
            ClusterError: a request failed; the pass is to be repeated.
        """
        record = self._store.record(key)
        if record is None or is_terminating(record.resource):
            self._api_keys.forget(key)
            self._pins.forget(key)
            self._downloads.forget(key)
            return None
        if record.endpoint is None:
            generation = record.resource["metadata"].get("generation", 0)
            await self._reporter.publish(record, build_invalid_status(generation, str(record.error)))
            return None
        return await self._reconcile_endpoint(record, record.endpoint)

    async def _reconcile_endpoint(self, record: EndpointRecord, endpoint: Endpoint) -> float | None:
        conflict = self._find_path_conflict(record, endpoint)
        observed = self._store.observed(endpoint.key)
        rendering = plan_rendering(
            endpoint,
            self._defaults,
            observed.deployment(endpoint),
            reported_generation=record.status.get("observedGeneration"),
        )
        scaler = select_scaler(endpoint, self._defaults, has_keda=self._store.is_served(SCALED_OBJECT))
        situation = Situation(
            endpoint,
            self._defaults,
            observed,
            pending_upgrade=rendering.pending,
            scaler=scaler,
            surroundings=self._store.surroundings,
        )
        handover = plan_handover(situation, is_routed=record.claim is not None and conflict is None, now=self._now())
        desired = build_desired(
            endpoint,
            self._defaults,
            handover.placement,
            can_surge=not is_awaiting_accelerator(situation),
            rendering=rendering,
            replicas=plan_replicas(situation),
            autoscaler=build_autoscaler(endpoint, self._defaults, scaler, observed),
        )
        plan = plan_writes(endpoint, desired, observed, kept=handover.kept)
        if plan.missing and not await self._is_alive(record):
            return None
        foreign, keys_s, refusal = list(plan.foreign), None, None
        if not foreign:
            try:
                await self._check_image(endpoint, plan)
                foreign = await self._write(endpoint, plan, observed)
                # Before any pod can mount it; but not where a name is taken.
                keys_s = None if foreign else await self._api_keys.ensure(endpoint, record.status)
            except ClusterError as error:
                refusal = _find_refusal(endpoint, error)
                if refusal is None:
                    raise
        if foreign and all(is_leftover(child, endpoint) for child in foreign):
            return _LEFTOVER_PERIOD_S
        if plan.missing and not (foreign or refusal) and self._has_backlog():
            return 0.0
        situation = replace(situation, refusal=refusal or _refuse_names(foreign, endpoint) or conflict)
        events_s = await self._report(record, situation)
        again_s = (keys_s, events_s, handover.again_s, _REFUSAL_PERIOD_S if situation.refusal else None)
        return min(filter(None, again_s), default=None)

    def _find_path_conflict(self, record: EndpointRecord, endpoint: Endpoint) -> Refusal | None:
        owner = self._store.find_route_owner(record.claim) if record.claim else None
        if record.claim is None or owner is None or owner == endpoint.key:
            return None
        where = f"on {record.claim[0]}" if record.claim[0] else "without a host"
        return Refusal(
            "PathConflict",
            f"the path /{endpoint.spec.dedicate} {where} belongs to the older endpoint {owner}; "
            "choose another spec.dedicate or spec.route.host, or delete that one",
        )

    async def _is_alive(self, record: EndpointRecord) -> bool:
        """Look at the endpoint itself: nothing is created for one that is gone or going, whatever the watch says.

        The store learns of it from the watch alone, which tells those that wait for its path.
        """
        live = await self._cluster.fetch(ENDPOINT, key_of(record.resource))
        return live is not None and live["metadata"]["uid"] == record.uid and not is_terminating(live)

    async def _check_image(self, endpoint: Endpoint, plan: Plan) -> None:
        """Try a model that is an image first: an API server without image volumes leaves it out of pods unsaid.

        Raises:
            ClusterError: it would be left out.
        """
        if not isinstance(endpoint.spec.model.source, ImageSource):
            return
        for manifest in (*plan.missing, *(manifest for manifest, _ in plan.drifted)):
            if kind_of(manifest) == DEPLOYMENT:
                volumes = (await self._cluster.try_apply(manifest))["spec"]["template"]["spec"].get("volumes") or []
                if not any("image" in volume for volume in volumes):
                    raise ClusterError(_IMAGE_LEFT_OUT, code=422)

    async def _write(self, endpoint: Endpoint, plan: Plan, observed: Observed) -> list[Json]:
        """Write what the plan says; stop at an object of somebody else that holds a name of ours, and return it."""
        for manifest in plan.missing:
            foreign = await self._create(manifest, endpoint)
            if foreign is not None:
                return [foreign]
        for manifest, path in plan.drifted:
            await self._repair(manifest, observed.children[kind_of(manifest), manifest["metadata"]["name"]], path)
        for kind, name in plan.obsolete:
            _LOG.info("deleting", extra={"endpoint": str(endpoint.key), "kind": str(kind), "child": name})
            await self._cluster.delete(kind, observed.children[kind, name])
        return []

    async def _create(self, manifest: Json, endpoint: Endpoint) -> Json | None:
        """Create a child; return what stands in its place if that is somebody else's.

        The watches select by label and do not show objects of others. To try and look only if the name is taken costs
        one request where nothing is in the way.
        """
        try:
            self._take_note(await self._cluster.apply(manifest, None), _MISSING)
        except ClusterError as error:
            if not error.is_conflict:
                raise
            present = await self._cluster.fetch(kind_of(manifest), key_of(manifest))
            if present is None or is_terminating(present):
                raise
            if not is_owned(present, endpoint):
                return present
            # Ours, and not among what the watch selects: somebody took the label off.
            await self._repair(manifest, present, _UNLABELLED)
        return None

    async def _repair(self, manifest: Json, seen: Json, why: str) -> None:
        try:
            child = await self._cluster.apply(manifest, seen)
        except ClusterError as error:
            if not error.is_invalid:
                raise
            # Somebody turned a list's item into another one; merged with ours the two may contradict each other.
            child = await self._cluster.overwrite(manifest, seen)
        self._take_note(child, why)

    def _take_note(self, child: Json, why: str) -> None:
        kind = kind_of(child)
        self._store.put_child(kind, child)
        _LOG.info("applied", extra={"kind": str(kind), "child": str(key_of(child)), "why": why})

    async def _report(self, record: EndpointRecord, situation: Situation) -> float | None:
        """Publish the status; return when to ask for Events again, if a pod waits for volumes."""
        observed, source = self._store.observed(situation.endpoint.key), situation.endpoint.spec.model.source
        situation = replace(
            situation,
            observed=observed,
            has_keys=self._api_keys.is_made(situation.endpoint, record.status),
            surroundings=self._store.surroundings,
            pinned=read_pinned(source, record.status) if isinstance(source, HubSource) else None,
            progress=self._downloads.follow(situation.endpoint.key, observed.pods),
        )
        await self._pins.ensure(situation.endpoint, record.status, find_commit(situation))
        waiting = [pod for pod in observed.pods if not is_ready(pod) and is_waiting_for_volumes(pod)]
        if waiting:
            situation = replace(situation, events=await self._fetch_events(waiting))
        await self._reporter.publish(record, build_status(situation))
        return _EVENTS_PERIOD_S if waiting else None

    async def _fetch_events(self, pods: Sequence[Json]) -> dict[str, list[Json]]:
        """Return the Warning Events of pods by uid, newest first."""
        events: dict[str, list[Json]] = {}
        for pod in pods[:_MAX_PODS_ASKED]:
            uid, namespace = pod["metadata"]["uid"], pod["metadata"]["namespace"]
            fields = f"involvedObject.kind={POD.kind},involvedObject.uid={uid},type=Warning"
            found = await self._cluster.fetch_list(EVENT, namespace, fields=fields)
            events[uid] = sorted(found.items, key=_event_time, reverse=True)
        return events


def _find_refusal(endpoint: Endpoint, error: ClusterError) -> Refusal | None:
    """Return why the API server will not have the children as they are, None where it may have them later."""
    is_image = isinstance(endpoint.spec.model.source, ImageSource)
    if is_image and any(words in str(error) for words in _NO_IMAGE_VOLUMES):
        return Refusal(
            "ImageVolumeUnsupported",
            "spec.model.uri is an image, and this cluster has no image volumes: they are on by default from Kubernetes "
            "1.35, and need the feature gate ImageVolume before; use pvc:// or hf:// instead",
        )
    if error.is_retryable or error.is_not_found:
        return None
    return Refusal("QuotaExceeded" if error.is_over_quota else "ChildRefused", str(error))


def _refuse_names(foreign: Sequence[Json], endpoint: Endpoint) -> Refusal | None:
    strangers = [child for child in foreign if not is_leftover(child, endpoint)]
    if not strangers:
        return None
    taken = ", ".join(f"{child['kind']} {child['metadata']['name']}" for child in strangers)
    return Refusal("NameConflict", f"{taken} exists and belongs to somebody else; it is left alone")


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
