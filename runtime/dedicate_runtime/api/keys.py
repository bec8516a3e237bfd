"""API keys from a mounted folder: one file a key, its name the client's id. Read again when the folder changes.

Keys are kept as digests that mean nothing outside this process, and never leave this module; logs and metrics know
clients by id. Requests are answered from memory: no request, with whatever key, makes this module look at a file.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NewType

from dedicate_runtime.api.errors import ApiError

KeyId = NewType("KeyId", str)

_log = logging.getLogger(__name__)
_MAX_KEY_BYTES = 4096  # arbitrary, over any key that fits a header
_MAX_LOGGED_IDS = 20  # arbitrary, for the eye
_HEADERS = (b"authorization", b"autherization")
"""The second is the spelling of the published specification."""

_Fingerprint = tuple[int, ...]


class KeyRing:
    """The keys of one folder, as `reload` last saw it. `reload` may run in another thread than `identify`."""

    def __init__(self, folder: Path) -> None:
        self.is_current = False
        """Whether the folder, and each file of it, could be read at the last look."""
        self._folder = folder
        self._blinding = secrets.token_bytes(32)
        self._seen: Mapping[str, _Fingerprint] | None = None
        self._digests: Mapping[KeyId, bytes] = {}
        self._owners: Mapping[bytes, KeyId] = {}
        self._told: frozenset[tuple[str, str]] = frozenset()
        self.reload()

    @property
    def ids(self) -> frozenset[KeyId]:
        """The clients that have a key now."""
        return frozenset(self._owners.values())

    def identify(self, key: bytes) -> KeyId | None:
        """Finds whose key this is, in the time of one look-up, however many keys there are.

        That time tells nothing of any key: what is looked up is a digest under a secret of this process, of which a
        client can predict no bit. Beyond ASCII, clients send a key in UTF-8 or, as HTTP has it, in Latin-1.
        """
        owner = self._owners.get(self._digest(key))
        if owner is None and not key.isascii():
            owner = self._owners.get(self._digest(key.decode("latin-1").encode()))
        return owner

    def reload(self) -> None:
        """Reads the folder again if any file of it is another than before.

        What cannot be read stays as it was: the folder, and so every key, or a file. A file that is gone is a key that
        is revoked. Does file I/O: call it off the event loop.
        """
        try:
            seen = _look_at(self._folder)
        except OSError as error:
            self._seen, self.is_current = None, False
            self._tell({("", f"the folder cannot be read: {error.strerror}")})
            return
        if seen == self._seen:
            return
        digests: dict[KeyId, bytes] = {}
        problems: set[tuple[str, str]] = set()
        self.is_current = True
        for name in seen:
            key_id = KeyId(name)
            try:
                digests[key_id] = self._digest(_read_key(self._folder / name))
            except FileNotFoundError:
                continue
            except OSError as error:
                self.is_current = False
                problems.add((name, f"it cannot be read: {error.strerror}"))
                if key_id in self._digests:
                    digests[key_id] = self._digests[key_id]
            except ValueError as error:
                problems.add((name, str(error)))
        self._take_up(digests, problems)
        # A file that could not be read is tried again at the next look, changed or not.
        self._seen = seen if self.is_current else None

    def _take_up(self, digests: Mapping[KeyId, bytes], problems: set[tuple[str, str]]) -> None:
        owners: dict[bytes, KeyId] = {}
        for key_id in sorted(digests):
            first = owners.setdefault(digests[key_id], key_id)
            if first != key_id:
                problems.add((key_id, f"its key is that of {first}, for whom its requests count"))
        if not owners:
            problems.add(("", "the folder holds no key, so every request is refused"))
        before, has_changed = self.ids, digests != self._digests
        self._digests, self._owners = digests, owners
        self._tell(problems)
        if has_changed:
            added, removed = sorted(self.ids - before), sorted(before - self.ids)
            names = {"added": added[:_MAX_LOGGED_IDS], "removed": removed[:_MAX_LOGGED_IDS]}
            _log.info("API keys loaded", extra={"num_keys": len(owners), **names})

    def _tell(self, problems: set[tuple[str, str]]) -> None:
        """Warns of each problem once, for as long as it lasts."""
        for name, problem in sorted(problems - self._told):
            _log.warning("API keys have a problem", extra={"file": ascii(name) if name else None, "problem": problem})
        self._told = frozenset(problems)

    def _digest(self, key: bytes) -> bytes:
        return hmac.digest(self._blinding, key, "sha256")


def _look_at(folder: Path) -> dict[str, _Fingerprint]:
    """Tells the folder's present content from any other; a kubelet swaps it behind links, so links are followed."""
    seen: dict[str, _Fingerprint] = {}
    with os.scandir(folder) as files:  # a third of the time that pathlib takes for thousands of keys
        for file in files:
            if file.name.startswith("."):
                continue
            try:
                status = file.stat()
            except FileNotFoundError:  # removed since it was listed, or a link that leads nowhere
                continue
            except OSError as error:  # told of when the file is read
                seen[file.name] = (error.errno or 0,)
                continue
            seen[file.name] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode)
    return seen


def _read_key(file: Path) -> bytes:
    """Reads one key.

    Raises:
        ValueError: the file holds none that a client could send; the sentence never quotes it.
        OSError: it cannot be read.
    """
    if not file.name.isprintable():
        raise ValueError("its name has characters that logs and metrics cannot show")
    if not file.is_file():
        raise ValueError("it is no file")
    with file.open("rb") as opened:
        key = opened.read(_MAX_KEY_BYTES + 3).strip()  # a line's end is no part of the key
    if not key:
        raise ValueError("it is empty")
    if len(key) > _MAX_KEY_BYTES:
        raise ValueError(f"it has more than {_MAX_KEY_BYTES} bytes")
    if any(byte < 0x20 or byte == 0x7F for byte in key):
        raise ValueError("it holds a line break or another control character, which no header can carry")
    return key


def bearer_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Takes the key from the request's headers, in either spelling.

    Raises:
        ApiError: 401, for no key, or for two that differ.
    """
    keys = {_parse_bearer(value) for name, value in headers if name.lower() in _HEADERS}
    if not keys:
        raise unauthorized("No API key. Send the header 'Authorization: Bearer YOUR_KEY'.")
    if len(keys) > 1:
        raise unauthorized("The headers Authorization and Autherization hold different keys.")
    return keys.pop()


def _parse_bearer(value: bytes) -> bytes:
    scheme, _, key = value.strip().partition(b" ")
    if scheme.lower() != b"bearer" or not key.strip():
        raise unauthorized("The API key must come as 'Bearer YOUR_KEY'.")
    return key.strip()


def unauthorized(message: str) -> ApiError:
    """Builds the 401 of a missing or wrong key."""
    return ApiError(
        401,
        message,
        kind="authentication_error",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )
