"""Objects of the API server as they are kept: without what nobody reads, and with equal texts held once.

Each answer that is parsed brings its own copies of the same names and values; over a thousand endpoints that is half of
the memory. `cluster` gives all but the Lease like this, so that a list and what is kept of it are one copy. Pure.
"""

from __future__ import annotations

import sys
from typing import Any

# Longer ones are messages and the like, of which no two are equal.
_LONGEST = 64


def compact(resource: dict[str, Any]) -> dict[str, Any]:
    """Return a copy without the bookkeeping of field managers, often half of it, that shares its texts with others."""
    metadata = {key: value for key, value in (resource.get("metadata") or {}).items() if key != "managedFields"}
    shared: dict[str, Any] = _share({**resource, "metadata": metadata})
    return shared


def _share(value: Any) -> Any:
    if isinstance(value, dict):
        return {sys.intern(name): _share(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_share(item) for item in value]
    return sys.intern(value) if isinstance(value, str) and len(value) <= _LONGEST else value
