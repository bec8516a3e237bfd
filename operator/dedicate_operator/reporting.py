"""Tells how an endpoint stands: its status, written only if it differs, and an Event for each changed condition."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

from dedicate_operator import names
from dedicate_operator.errors import ClusterError
from dedicate_operator.identity import Key
from dedicate_operator.kinds import Json
from dedicate_operator.status import MAX_MESSAGE_LENGTH, find_news, stamp_transitions
from dedicate_operator.store import EndpointRecord, Store, key_of

_LOG = logging.getLogger(__name__)

# Reasons in the ordinary course of things; not worth a warning, and of a new endpoint not worth an Event.
_USUAL_REASONS = frozenset(
    {
        "Downloading",
        "NotAdmitted",
        "NotStarted",
        "Pending",
        "RollingOut",
        "ScaledToZero",
        "Scaling",
        "Starting",
        "Suspended",
        "UpToDate",
        "Valid",
        "UpgradeAvailable",
        "WaitingForModel",
    }
)


class StatusWriter(Protocol):
    async def apply_status(self, key: Key, seen: Json, status: Json) -> Json: ...

    async def create_event(self, manifest: Json) -> None: ...


class Reporter:
    """Writes what `status` computed; the one place that knows the time."""

    def __init__(self, cluster: StatusWriter, store: Store, *, now: Callable[[], datetime]) -> None:
        self._cluster = cluster
        self._store = store
        self._now = now

    async def publish(self, record: EndpointRecord, status: Json) -> None:
        """Write the status if it differs from the one that stands, and tell what changed.

        Raises:
            ClusterError: the status could not be written; an endpoint that is gone is no error.
        """
        stamped = stamp_transitions(status, record.status, self._now().strftime("%Y-%m-%dT%H:%M:%SZ"))
        if stamped == record.status:
            return
        try:
            resource = await self._cluster.apply_status(key_of(record.resource), record.resource, stamped)
        except ClusterError as error:
            if error.is_not_found:
                return
            raise
        self._store.put_endpoint(resource)
        for condition in find_news(stamped, record.status):
            if record.status or condition["reason"] not in _USUAL_REASONS:
                await self._tell(record, condition)

    async def _tell(self, record: EndpointRecord, condition: Json) -> None:
        manifest = build_event(record, condition, name=uuid.uuid4().hex[:16], now=self._now())
        try:
            await self._cluster.create_event(manifest)
        except ClusterError as error:
            # An Event is a courtesy; the condition has been written.
            _LOG.warning("event not recorded", extra={"reason": condition["reason"], "error": str(error)})


def build_event(record: EndpointRecord, condition: Json, *, name: str, now: datetime) -> Json:
    """Return the Event that tells of a condition."""
    metadata = record.resource["metadata"]
    is_fine = condition["status"] == "True" or condition["reason"] in _USUAL_REASONS
    seconds = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": metadata["namespace"], "name": f"{metadata['name']}.{name}"},
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
        "firstTimestamp": seconds,
        "lastTimestamp": seconds,
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "count": 1,
    }
