"""How far a download has come: counted by the threads that fetch, read by the page, the beat and the log."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any


class Stage(Enum):
    """What a download does."""

    RESOLVING = "resolving"
    WAITING = "waiting"
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """One look at a download. `trouble` says what it waits for to pass, None while all goes well."""

    stage: Stage = Stage.RESOLVING
    downloaded_bytes: int = 0
    total_bytes: int = 0
    trouble: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.stage.value,
            "downloadedBytes": self.downloaded_bytes,
            "totalBytes": self.total_bytes,
            "trouble": self.trouble,
        }


class Progress:
    """The present state, changed and read under one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()

    def look(self) -> Snapshot:
        """Give the state as it is now."""
        with self._lock:
            return self._now

    def enter(self, stage: Stage, *, total_bytes: int | None = None, downloaded_bytes: int | None = None) -> None:
        """Go on to another stage; amounts that are not named stay."""
        with self._lock:
            now = self._now
            self._now = replace(
                now,
                stage=stage,
                total_bytes=now.total_bytes if total_bytes is None else total_bytes,
                downloaded_bytes=now.downloaded_bytes if downloaded_bytes is None else downloaded_bytes,
            )

    def add(self, num_bytes: int) -> None:
        """Count bytes that have arrived, or, below zero, that turned out to be wrong."""
        with self._lock:
            self._now = replace(self._now, downloaded_bytes=self._now.downloaded_bytes + num_bytes, trouble=None)

    def note_trouble(self, trouble: str | None) -> None:
        """Say what is waited for."""
        with self._lock:
            self._now = replace(self._now, trouble=trouble)

    def mirror(self, seen: dict[str, Any]) -> None:
        """Show what another process, which downloads for all, says of itself; what is no such thing is not shown."""
        amounts = (seen.get("downloadedBytes"), seen.get("totalBytes"))
        if all(isinstance(amount, int) for amount in amounts):
            trouble = seen.get("trouble")
            with self._lock:
                self._now = Snapshot(
                    stage=Stage.WAITING,
                    downloaded_bytes=amounts[0] or 0,
                    total_bytes=amounts[1] or 0,
                    trouble=trouble if isinstance(trouble, str) else None,
                )
