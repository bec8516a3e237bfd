"""What a running cluster says of itself, in a file that is replaced whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path


class Phase(StrEnum):
    """Where in its life a cluster is."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


class State(StrEnum):
    """Where in its life a component is."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FINISHED = "finished"


@dataclass
class ComponentStatus:
    """One component: its state, its process id in the supervisor's view, and when it became ready."""

    state: State = State.WAITING
    pid: int | None = None
    ready_after_s: float | None = None
    num_restarts: int = 0


@dataclass
class ClusterStatus:
    """The whole cluster; `message` says what went wrong."""

    phase: Phase = Phase.STARTING
    message: str = ""
    ready_after_s: float | None = None
    components: dict[str, ComponentStatus] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Replace the file, so that no reader sees half of it."""
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self)))
        scratch.replace(path)

    @classmethod
    def read(cls, path: Path) -> ClusterStatus | None:
        """Return the status, or None where no cluster has written one."""
        try:
            raw = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        components = {
            name: ComponentStatus(**(entry | {"state": State(entry["state"])}))
            for name, entry in raw.pop("components").items()
        }
        return cls(phase=Phase(raw.pop("phase")), components=components, **raw)
