"""What a repository of the hub holds, and which of its files a model is loaded from. Plain values.

The hub names every file by a digest of its content: the sha256 of a large file (LFS), git's own sha1 of any other. The
cache stores files under these names, so what is on a disk can be checked without asking anybody.
Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterable

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")

_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*")
_UNWANTED = ("original/*", "consolidated*", "onnx/*", "openvino/*", "*.gguf")
"""The same weights in other formats, which some repositories carry beside ours."""


class Digest(Protocol):
    """A running digest, as hashlib makes them."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A repository of the hub, and which revision of it; None is the default branch."""

    repository: str
    revision: str | None = None
    with_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a revision that is no name of git's; names of branches become paths in the cache.

        Raises:
            StartError: INVALID_ARGUMENTS. Source: git-check-ref-format(1).
        """
        if self.revision is not None and (".." in self.revision or self.revision.startswith("/")):
            raise StartError(
                ExitCode.INVALID_ARGUMENTS, f"--revision cannot be {self.revision!r}: git has no such name."
            )

    @property
    def ref(self) -> str:
        """The name under which the hub knows the revision."""
        return self.revision or "main"

    @property
    def commit(self) -> str | None:
        """The revision, if it cannot move."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository} at revision {self.revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a commit. `blob` is the name of its content: `is_large` tells of which digest."""

    path: str
    size: int
    blob: str
    is_large: bool

    def new_digest(self) -> Digest:
        """Start the digest whose end is `blob` where the content is right."""
        if self.is_large:
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


class ListingError(Exception):
    """The hub's list of files is not one that can be used."""


def parse_listing(entries: Iterable[Any]) -> tuple[RemoteFile, ...]:
    """Turn the hub's list of a commit's files, as it came, into files whose names are safe to use as paths.

    Raises:
        ListingError: an entry is not what the hub's protocol says.
    """
    return tuple(_parse_entry(entry) for entry in entries if isinstance(entry, dict) and entry.get("type") == "file")


def _parse_entry(entry: dict[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    path, size = entry.get("path"), entry.get("size")
    blob = lfs.get("oid") if isinstance(lfs, dict) else entry.get("oid")
    pattern = _SHA256 if isinstance(lfs, dict) else _SHA1
    if not isinstance(path, str) or not _is_safe(path):
        raise ListingError(f"it names a file {path!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ListingError(f"it gives no size of {path}")
    if not isinstance(blob, str) or not pattern.fullmatch(blob):
        raise ListingError(f"it gives no digest of {path}")
    return RemoteFile(path=path, size=size, blob=blob, is_large=isinstance(lfs, dict))


def _is_safe(path: str) -> bool:
    parts = path.split("/")
    return "\\" not in path and "\0" not in path and all(part not in {"", ".", ".."} for part in parts)


def select_files(files: Iterable[RemoteFile], *, with_code: bool) -> tuple[RemoteFile, ...]:
    """Choose what the runtime reads, the largest first: the last to end is then a small one."""
    wanted = (*_WANTED, "*.py") if with_code else _WANTED
    chosen = [file for file in files if _matches(file.path, wanted) and not _matches(file.path, _UNWANTED)]
    return tuple(sorted(chosen, key=lambda file: (-file.size, file.path)))


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def format_bytes(num_bytes: int) -> str:
    """Write an amount as people and disks' labels have it, in decimal units."""
    if num_bytes >= 10**8:
        return f"{num_bytes / 10**9:.1f} GB"
    return f"{num_bytes / 10**6:.1f} MB"
