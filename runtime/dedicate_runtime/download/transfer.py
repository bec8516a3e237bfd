"""Fetches one file into the cache: goes on where an interrupted download ended, and takes in nothing unverified."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dedicate_runtime.download.hub import HubClient, HubTroubleError
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from io import BufferedRandom

    from dedicate_runtime.download.cache import ModelCache
    from dedicate_runtime.download.patience import Patience
    from dedicate_runtime.download.progress import Progress
    from dedicate_runtime.download.repository import Digest, RemoteFile

_logger = logging.getLogger(__name__)

_READ_BYTES = 4 * 1024 * 1024


class Transfer:
    """Fetches files of one commit; used by several threads, each with files of its own."""

    def __init__(
        self, hub: HubClient, cache: ModelCache, commit: str, *, progress: Progress, patience: Patience
    ) -> None:
        self._hub = hub
        self._cache = cache
        self._commit = commit
        self._progress = progress
        self._patience = patience

    def fetch(self, file: RemoteFile) -> None:
        """Make the file's content present and right. Bytes that were there already are not counted again.

        Raises:
            StartError: CORRUPT_FILE, and whatever the hub and `Patience` raise.
            StoppedError: another file's fetch has failed.
            OSError: the cache cannot be written.
        """
        partial = self._cache.open_partial(file)
        with partial.open("r+b") as target:
            position, digest = self._take_up(target, file)
            if position:
                _logger.info("Going on with %s at byte %d of %d", file.path, position, file.size)
            is_second_time = False
            while True:
                position, digest = self._receive(target, file, position, digest)
                if digest.hexdigest() == file.blob:
                    break
                self._progress.add(-position)
                if is_second_time:
                    partial.unlink(missing_ok=True)
                    raise StartError(
                        ExitCode.CORRUPT_FILE,
                        f"{file.path}, as the hub at {self._hub.endpoint} delivers it, is not the file that it lists: "
                        "its digest is wrong, and was wrong again when it was fetched a second time.",
                    )
                # What an interrupted download left may be wrong; or what came now.
                _logger.warning("The digest of %s is wrong; fetching it again", file.path)
                is_second_time = True
                position, digest = 0, file.new_digest()
                target.truncate(0)
            target.flush()
            os.fsync(target.fileno())
        self._cache.accept(partial, file)

    def _take_up(self, target: BufferedRandom, file: RemoteFile) -> tuple[int, Digest]:
        """Read what is there already; returns its length and its digest."""
        digest, position = file.new_digest(), 0
        if os.fstat(target.fileno()).st_size > file.size:
            target.truncate(0)
        while chunk := target.read(_READ_BYTES):
            self._patience.check()
            digest.update(chunk)
            position += len(chunk)
        return position, digest

    def _receive(self, target: BufferedRandom, file: RemoteFile, position: int, digest: Digest) -> tuple[int, Digest]:
        """Fetch from `position` to the end; returns the length that is there then, and the digest of it all."""
        attempt = 0
        while position < file.size:
            begun = position
            trouble = HubTroubleError(f"the answer ended before {file.path} did")
            try:
                with self._hub.open(self._commit, file.path, position) as (begin, chunks):
                    if begin != position:
                        # This hub knows no ranges: from the beginning, then.
                        self._progress.add(-position)
                        begun = position = begin
                        digest = file.new_digest()
                        target.truncate(0)
                    target.seek(position)
                    for chunk in chunks:
                        # One byte too many makes the digest wrong, which is enough; more would fill the disk.
                        piece = chunk[: file.size + 1 - position]
                        position += self._take(target, piece, digest)
                        if position > file.size:
                            break
            except HubTroubleError as error:
                trouble = error
            if position < file.size:
                _logger.info("Fetching %s again from byte %d: %s", file.path, position, trouble.reason)
                attempt = 0 if position > begun else attempt + 1
                self._patience.bear(trouble, attempt)
        return position, digest

    def _take(self, target: BufferedRandom, piece: bytes, digest: Digest) -> int:
        self._patience.check()
        target.write(piece)
        digest.update(piece)
        self._progress.add(len(piece))
        self._patience.feed()
        return len(piece)


def is_right(path: Path, file: RemoteFile, patience: Patience) -> bool:
    """Read a file that is there, and tell whether its content is what its name says."""
    digest = file.new_digest()
    with path.open("rb") as content:
        if os.fstat(content.fileno()).st_size != file.size:
            return False
        while chunk := content.read(_READ_BYTES):
            patience.check()
            digest.update(chunk)
    return digest.hexdigest() == file.blob
