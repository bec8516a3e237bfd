"""What names one endpoint."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Names one endpoint, or an object in a namespace; the unit of work."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
