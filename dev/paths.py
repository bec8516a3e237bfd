"""Where development keeps what is worth keeping, outside the checkout.

Caches are keyed by content, so that two checkouts share them and none can be stale. Source: XDG Base Directory
Specification.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def cache_dir() -> Path:
    """Give the folder of caches that survive a reboot and a new clone; it need not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dedicate"


def state_dir() -> Path:
    """Give the folder of run-time state: logs, sockets, credentials of running clusters; it need not exist yet."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "dedicate"


def content_key(files: Iterable[Path], *, salt: str = "") -> str:
    """Hash the contents of `files`, in the order given, and `salt` to 16 hexadecimal digits."""
    digest = hashlib.sha256(salt.encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]
