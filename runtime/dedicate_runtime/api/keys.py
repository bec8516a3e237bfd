"""API keys from a mounted folder: one file a key, its name the client's id. Reread when the folder changes.

Keys are kept as digests and never leave this module; logs and metrics know clients by id.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NewType

from dedicate_runtime.api.errors import ApiError

KeyId = NewType("KeyId", str)

_log = logging.getLogger(__name__)
_CHECK_INTERVAL_S = 1.0
_MAX_KEY_BYTES = 4096  # arbitrary, over any key that fits a header
_HEADERS = ("authorization", "autherization")
"""The second is the spelling of the published specification."""


class KeyRing:
    """The keys of one folder, as it is now: looked at once a second, and before a key is refused."""

    def __init__(self, folder: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._digests: dict[KeyId, bytes] = {}
        self._seen: object = None
        self._checked_at = -_CHECK_INTERVAL_S
        self._reload_if_changed()

    @property
    def ids(self) -> frozenset[KeyId]:
        """The clients that have a key now."""
        return frozenset(self._digests)

    def identify(self, key: str) -> KeyId | None:
        """Finds whose key this is, in a time that does not depend on how much of it is right."""
        now = self._clock()
        if now - self._checked_at >= _CHECK_INTERVAL_S:
            self._checked_at = now
            self._reload_if_changed()
        digest = hashlib.sha256(key.encode()).digest()
        found = self._find(digest)
        if found is None and self._reload_if_changed():
            found = self._find(digest)
        return found

    def _find(self, digest: bytes) -> KeyId | None:
        found = None
        for key_id, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = key_id
        return found

    def _reload_if_changed(self) -> bool:
        """Reads the folder again if any file of it is another than before; keeps the old keys if it cannot."""
        try:
            files = sorted(file for file in self._folder.iterdir() if not file.name.startswith("."))
            seen = [_fingerprint(file) for file in files]
            if seen == self._seen:
                return False
            digests = {KeyId(file.name): digest for file in files if (digest := _read_digest(file)) is not None}
        except OSError as error:
            _log.warning("API keys cannot be read", extra={"error": str(error)})
            return False
        self._seen, self._digests = seen, digests
        _log.info("API keys loaded", extra={"key_ids": sorted(digests)})
        return True


def _fingerprint(file: Path) -> tuple[str, int, int, int]:
    """Tells one content of a file from the next; a kubelet swaps the folder behind the links, so links are followed."""
    status = file.stat()
    return file.name, status.st_mtime_ns, status.st_size, status.st_ino


def _read_digest(file: Path) -> bytes | None:
    if not file.is_file():
        return None
    key = file.read_bytes()[: _MAX_KEY_BYTES + 1].strip()
    if not key or len(key) > _MAX_KEY_BYTES:
        _log.warning("API key ignored: empty or too long", extra={"key_id": file.name})
        return None
    return hashlib.sha256(key).digest()


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Takes the key from the request's headers, in either spelling.

    Raises:
        ApiError: 401, for no key, or for two that differ.
    """
    values = {value for name, value in headers if name.decode("latin-1").lower() in _HEADERS}
    if not values:
        raise unauthorized("No API key. Send the header 'Authorization: Bearer YOUR_KEY'.")
    keys = {_key_of(value) for value in values}
    if len(keys) > 1:
        raise unauthorized("The headers Authorization and Autherization hold different keys.")
    key = keys.pop()
    if key is None:
        raise unauthorized("The API key must come as 'Bearer YOUR_KEY'.")
    return key


def _key_of(value: bytes) -> str | None:
    """Reads the value of one header; None if it is no bearer key."""
    scheme, _, key = value.decode("utf-8", "replace").strip().partition(" ")
    return key.strip() or None if scheme.lower() == "bearer" else None


def unauthorized(message: str) -> ApiError:
    """Builds the 401 of a missing or wrong key."""
    return ApiError(
        401,
        message,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
