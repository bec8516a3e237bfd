"""What a status is computed from, and what it is made of. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dedicate_operator.kinds import Json, Kind
from dedicate_operator.observed import Observed
from dedicate_operator.settings import EndpointDefaults
from dedicate_operator.spec import Endpoint
from dedicate_operator.surroundings import Surroundings

ConditionStatus = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: ConditionStatus
    reason: str
    message: str

    @property
    def is_false(self) -> bool:
        return self.status == "False"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an endpoint cannot be accepted although its specification is valid by itself."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a pod's download is, by its own account. `trouble` says what it waits for to pass."""

    stage: str
    downloaded_bytes: int
    total_bytes: int
    trouble: str | None = None


@dataclass(frozen=True, slots=True)
class Situation:
    """All that a status is computed from.

    Attributes:
        refusal: set if the endpoint is not served as asked.
        events: Warning Events of pods that wait for volumes, by the pod's uid.
        has_keys: whether the Secret with the API keys was made.
        pending_upgrade: what an upgrade of the operator left as it was in the pods.
        scaler: the kind of the autoscaler that this cluster calls for, None where nothing scales.
        surroundings: what others keep that routes depend on.
        pinned: the commit that what the specification asks for was resolved to before.
        progress: of the download that goes on, as far as it is known.
    """

    endpoint: Endpoint
    defaults: EndpointDefaults
    observed: Observed
    refusal: Refusal | None = None
    events: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    has_keys: bool = True
    pending_upgrade: str | None = None
    scaler: Kind | None = None
    surroundings: Surroundings = field(default_factory=Surroundings)
    pinned: str | None = None
    progress: DownloadProgress | None = None
