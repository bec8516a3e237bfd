"""The folder of the cache: the hub client's own layout, and beside it what that layout has no place for.

```
<HF_HUB_CACHE>/models--org--name/blobs/<digest>           content, named by its digest
                                 snapshots/<commit>/path  links to it, what a model is loaded from
                                 refs/<branch>            the commit that a branch was last seen at
                                 trees/<commit>.json      the commit's files with sizes and digests
<HF_HUB_CACHE>/.dedicate/pins/<name>/<request>            the commit that an endpoint got for a request
                         verified/models--org--name.json  size and time of each file whose digest was found right
                         locks/, beats/                   see `lock`
```
A cache that other tools filled is used as it is, and they find what is downloaded here. Writers replace files as a
whole, so a reader never sees half of one. Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dedicate_runtime.download.repository import COMMIT, ListingError, ModelSource, RemoteFile, parse_listing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_TREE_VERSION = 1
"""Of the hub client's format, the one that it writes today; another is not read."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class ModelCache:
    """What one cache holds of one repository."""

    def __init__(self, root: Path, source: ModelSource) -> None:
        self.root = root
        self._source = source
        self.folder_name = "models--" + source.repository.replace("/", "--")
        self._folder = root / self.folder_name
        self._own = root / ".dedicate"

    @property
    def own(self) -> Path:
        """The folder of what only we keep there."""
        return self._own

    def snapshot(self, commit: str) -> Path:
        return self._folder / "snapshots" / commit

    def read_pin(self, name: str) -> str | None:
        return _read_commit(self._pin(name))

    def write_pin(self, name: str, commit: str) -> None:
        _replace(self._pin(name), commit)

    def _pin(self, name: str) -> Path:
        request = f"{self._source.repository}@{self._source.ref}"
        return self._own / "pins" / name / hashlib.sha256(request.encode()).hexdigest()[:16]

    def read_ref(self) -> str | None:
        """The commit at which the branch or tag was last seen."""
        return self._source.commit or _read_commit(self._folder / "refs" / self._source.ref)

    def write_ref(self, commit: str) -> None:
        if commit != self._source.ref:
            _replace(self._folder / "refs" / self._source.ref, commit)

    def read_listing(self, commit: str) -> tuple[RemoteFile, ...] | None:
        """Return the files of a commit, None where that is not known here."""
        document = _read_json(self._folder / "trees" / f"{commit}.json")
        if document.get("format_version") != _TREE_VERSION or not isinstance(document.get("files"), dict):
            return None
        try:
            return parse_listing(_to_entry(path, entry) for path, entry in document["files"].items())
        except (ListingError, AttributeError):
            return None

    def write_listing(self, commit: str, files: Iterable[RemoteFile]) -> None:
        entries: dict[str, dict[str, Any]] = {}
        for file in files:
            entries[file.path] = {"size": file.size, "blob_id": file.blob}
            if file.is_large:
                entries[file.path] |= {"lfs_sha256": file.blob, "lfs_size": file.size}
        text = json.dumps({"format_version": _TREE_VERSION, "files": entries}, indent=1)
        _replace(self._folder / "trees" / f"{commit}.json", text)

    def find(self, file: RemoteFile, commit: str) -> Path | None:
        """Return where the content of a file is, whether it is right or not; None if nowhere."""
        blob, place = self._folder / "blobs" / file.blob, self.snapshot(commit) / file.path
        if blob.is_file():
            return blob
        # Where the file system knows no links, content is in the place itself.
        return place if place.is_file() and not place.is_symlink() else None

    def link(self, file: RemoteFile, commit: str) -> None:
        """Put a file into the snapshot of its commit; its content is there."""
        blob, place = self._folder / "blobs" / file.blob, self.snapshot(commit) / file.path
        if not blob.is_file() or (place.is_symlink() and place.exists()):
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        passing = place.with_name(f".{uuid.uuid4().hex}")
        try:
            passing.symlink_to(os.path.relpath(blob, place.parent))
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            blob.replace(place)
        else:
            passing.replace(place)

    def is_complete(self, files: Iterable[RemoteFile], commit: str) -> bool:
        """Tell whether every file stands in the snapshot and is the one whose digest was found right."""
        verified = self.read_verified()
        return all(self._is_verified(self.snapshot(commit) / file.path, file, verified) for file in files)

    def is_verified(self, file: RemoteFile, commit: str, verified: Mapping[str, Any]) -> bool:
        found = self.find(file, commit)
        return found is not None and self._is_verified(found, file, verified)

    @staticmethod
    def _is_verified(path: Path, file: RemoteFile, verified: Mapping[str, Any]) -> bool:
        try:
            stat = path.stat()
        except OSError:
            return False
        return stat.st_size == file.size and verified.get(file.blob) == [stat.st_size, stat.st_mtime_ns]

    def read_verified(self) -> dict[str, Any]:
        return _read_json(self._own / "verified" / f"{self.folder_name}.json")

    def write_verified(self, files: Iterable[RemoteFile], commit: str) -> None:
        """Remember of each file that its digest was right, and by what a change of it would show."""
        verified = self.read_verified()
        for file in files:
            found = self.find(file, commit)
            if found is not None:
                stat = found.stat()
                verified[file.blob] = [stat.st_size, stat.st_mtime_ns]
        _replace(self._own / "verified" / f"{self.folder_name}.json", json.dumps(verified))

    def open_partial(self, file: RemoteFile) -> Path:
        """Return the file to go on with: the longest that an interrupted download left, or a new one.

        It is taken by renaming it, so no two downloads go on with the same one, whatever the lock is worth.
        """
        blobs = self._folder / "blobs"
        blobs.mkdir(parents=True, exist_ok=True)
        mine = blobs / f"{file.blob}.dedicate-{uuid.uuid4().hex[:8]}.incomplete"
        left = sorted(blobs.glob(f"{file.blob}.dedicate-*.incomplete"), key=_size, reverse=True)
        for partial in left:
            with contextlib.suppress(FileNotFoundError):
                partial.replace(mine)
                break
        else:
            mine.touch()
        for shorter in left:
            if shorter.exists():
                shorter.unlink(missing_ok=True)
        return mine

    def count_partial_bytes(self, file: RemoteFile) -> int:
        """Return how much of a file an interrupted download left."""
        sizes = map(_size, (self._folder / "blobs").glob(f"{file.blob}.dedicate-*.incomplete"))
        return min(max(sizes, default=0), file.size)

    def accept(self, partial: Path, file: RemoteFile) -> None:
        """Make a complete and right file the content of its name."""
        partial.replace(self._folder / "blobs" / file.blob)

    def discard(self, file: RemoteFile, commit: str) -> None:
        """Take away content that is wrong, so that it is fetched anew."""
        found = self.find(file, commit)
        if found is not None:
            found.unlink(missing_ok=True)

    def count_free_bytes(self) -> int:
        """Return what the file system lets us write."""
        folder = self.root
        while not folder.exists():
            folder = folder.parent
        stat = os.statvfs(folder)
        return stat.f_bavail * stat.f_frsize


def _to_entry(path: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """One file in the client's format, as the hub would list it."""
    listed = {"type": "file", "path": path, "size": entry.get("size"), "oid": entry.get("blob_id")}
    return listed | ({"lfs": {"oid": entry["lfs_sha256"]}} if entry.get("lfs_sha256") else {})


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read_commit(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return text if COMMIT.fullmatch(text) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object, an empty one where there is none that can be read."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    passing = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        passing.write_text(text, encoding="utf-8")
        passing.replace(path)
    finally:
        passing.unlink(missing_ok=True)
