"""Who leads, decided without I/O: what was seen of a Lease, an identity and the time say what to do next.

The rules are those of client-go's leader election. A leader renews the Lease and stops writing `RENEW_DEADLINE_S` after
it sent its last successful renewal; another may take the Lease `LEASE_S` after it first saw it in its present version.
The version was written after that renewal was sent, so the second comes at least `TRANSIT_S` after the first, whatever
either's wall clock says: each measures a duration with a clock of its own, and times in the Lease are for people.
Every change of the Lease names the version it replaces, so that of two who try one succeeds. Absence has no version:
where there is no Lease, one is made in the name of nobody, and has to run out like any other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from dedicate_operator import names
from dedicate_operator.identity import Key
from dedicate_operator.kinds import LEASE, Json

# The defaults of client-go, which Kubernetes' own controllers run with.
LEASE_S = 15.0
RENEW_DEADLINE_S = 10.0
RENEW_PERIOD_S = 2.0
# What remains for a request that was sent in time to arrive and be done with, before another may lead.
TRANSIT_S = LEASE_S - RENEW_DEADLINE_S
# A third of what a graceful hand-over may take.
LOOK_PERIOD_S = 1.0
# A leader whose renewal failed has time for several more within its deadline.
_RETRY_PERIOD_S = 0.5
# Stands in a Lease that was made where there was none: whoever held the one before need not know that it is gone.
NOBODY = "unknown"


@dataclass(frozen=True, slots=True)
class Sighting:
    """How the Lease stood when it was looked at, and since when it is known to have stood so."""

    lease: Json | None
    since: float

    @property
    def holder(self) -> str | None:
        """Who holds it; empty if it was released, None if there is no Lease."""
        return None if self.lease is None else str(_spec(self.lease).get("holderIdentity") or "")

    @property
    def free_at(self) -> float:
        """When somebody other than the holder may take it; at once if it was released."""
        if self.lease is None:
            return math.inf
        # A holder of another version may have been granted longer.
        granted_s = float(_spec(self.lease).get("leaseDurationSeconds") or 0)
        return self.since + max(LEASE_S, granted_s) if self.holder else -math.inf


class Candidate:
    """One process's part in the election. `writes_until` is all that others act on."""

    def __init__(self, identity: str, key: Key) -> None:
        self.identity = identity
        self.writes_until = -math.inf
        self.sighting: Sighting | None = None
        self._key = key
        self._is_certain = False
        self._claimed_at = -math.inf

    @property
    def is_holder(self) -> bool:
        """Whether the Lease, as last seen, names this process; it may have run out since."""
        return self.sighting is not None and self.sighting.holder == self.identity

    @property
    def must_look(self) -> bool:
        """Whether the Lease must be read before it can be claimed: always, but by a leader whose claims succeed."""
        return not (self._is_certain and self.is_holder)

    @property
    def num_transitions(self) -> int:
        lease = self.sighting.lease if self.sighting else None
        return 0 if lease is None else int(_spec(lease).get("leaseTransitions") or 0)

    def leads(self, now: float) -> bool:
        return now < self.writes_until

    def see(self, lease: Json | None, now: float) -> None:
        """Take note of the Lease as it was read; `now` is not before the answer arrived."""
        last = self.sighting
        is_same = last is not None and _version(last.lease) == _version(lease)
        self.sighting = Sighting(lease, last.since if last is not None and is_same else now)
        if not self.is_holder:
            self.writes_until = -math.inf

    def doubt(self) -> None:
        """Take note that a request failed: what it was to change may have changed or not."""
        self._is_certain = False

    def plan_write(self, now: float, wall: datetime) -> Json | None:
        """Return the Lease as it is to be written now; None while it is somebody else's.

        Args:
            now: of the clock that every duration is measured with.
            wall: of the clock that people read.
        """
        if self.sighting is None:
            return None
        if self.sighting.lease is None:
            return self._build({}, NOBODY, wall)
        if self.is_holder or now >= self.sighting.free_at:
            return self._build(self.sighting.lease, self.identity, wall)
        return None

    def take_note(self, lease: Json, sent_at: float, now: float) -> None:
        """Take note of the Lease as a write left it; `sent_at` is not after the write was sent."""
        self.sighting = Sighting(lease, now)
        if self.is_holder:
            self.writes_until = sent_at + RENEW_DEADLINE_S
            self._claimed_at = sent_at
            self._is_certain = True

    def resign(self) -> None:
        """Write no more; the Lease may be released once nothing is under way."""
        self.writes_until = -math.inf

    def pause_s(self, now: float, jitter: float) -> float:
        """Return how long to wait before the next step; `jitter`, from 0 to 1, keeps candidates from meeting."""
        spread = 0.8 + 0.2 * jitter
        if not self.must_look:
            return max(0.0, self._claimed_at + RENEW_PERIOD_S * spread - now)
        if self.leads(now):
            return _RETRY_PERIOD_S * spread
        free_at = self.sighting.free_at if self.sighting else math.inf
        # One that is free and was not taken by now is left to whoever was quicker.
        return min(LOOK_PERIOD_S * spread, free_at - now if free_at > now else math.inf)

    def plan_release(self, wall: datetime) -> Json | None:
        """Return the Lease as nobody holds it; None if this process does not hold it either."""
        if self.sighting is None or self.sighting.lease is None or not self.is_holder:
            return None
        return self._build(self.sighting.lease, "", wall)

    def _build(self, lease: Json, holder: str, wall: datetime) -> Json:
        """Return a Lease in place of the one that was seen, with whatever others wrote into it."""
        time, spec, seen = wall.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), _spec(lease), lease.get("metadata", {})
        changed: Json = {"holderIdentity": holder, "leaseDurationSeconds": int(LEASE_S), "renewTime": time}
        if holder == self.identity and not self.is_holder:
            changed |= {"acquireTime": time, "leaseTransitions": self.num_transitions + 1}
        labels = {names.MANAGED_BY_LABEL: names.FIELD_MANAGER, **(seen.get("labels") or {})}
        # Without the uid, a Lease that was deleted would be made again by its renewal.
        kept = {
            name: seen[name] for name in ("uid", "resourceVersion", "annotations", "ownerReferences") if name in seen
        }
        return {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._key.name, "namespace": self._key.namespace, "labels": labels, **kept},
            "spec": {**spec, **changed},
        }


def _spec(lease: Mapping[str, Json]) -> Json:
    return lease.get("spec") or {}


def _version(lease: Mapping[str, Json] | None) -> tuple[str, str] | None:
    return None if lease is None else (lease["metadata"]["uid"], lease["metadata"]["resourceVersion"])
