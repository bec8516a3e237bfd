"""From a repository's name to a folder with all of one commit's files, each of them verified.

The commit is the one that is pinned, else what the hub says, else what the cache last knew. Files that are there and
were verified before cost nothing; others are read through; what is missing or wrong is fetched. A folder that is
complete is found without the hub and without the lock.
"""

from __future__ import annotations

import errno
import logging
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dedicate_runtime.download.cache import ModelCache
from dedicate_runtime.download.hub import HubClient, HubTroubleError
from dedicate_runtime.download.lock import CacheLock
from dedicate_runtime.download.patience import Patience, StoppedError
from dedicate_runtime.download.progress import Progress, Stage
from dedicate_runtime.download.repository import ModelSource, RemoteFile, format_bytes, select_files
from dedicate_runtime.download.transfer import Transfer, is_right
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_logger = logging.getLogger(__name__)

AnswerT = TypeVar("AnswerT")

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_WRITING = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NUM_THREADS = 8
_SHORT_PATIENCE_S = 10.0
"""With the hub, where the cache could do instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadRules:
    """How a download goes about it.

    Attributes:
        pin: name under which the commit of the first resolve is kept in the cache; None keeps none.
        pinned_commit: the commit to take, whatever the revision is by now.
        patience_s: how long the hub may deliver nothing.
        max_bytes: what the cache may hold; None for what the disk has.
        verifies_all: read files through even if nothing says that they changed.
        is_offline: never ask the hub.
    """

    pin: str | None = None
    pinned_commit: str | None = None
    patience_s: float = 60.0
    max_bytes: int | None = None
    verifies_all: bool = False
    is_offline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSnapshot:
    """A complete folder. `num_bytes` counts the files that a model is loaded from."""

    folder: Path
    commit: str
    num_bytes: int


class Downloader:
    """Fetches one repository into one cache."""

    def __init__(
        self, source: ModelSource, root: Path, rules: DownloadRules, progress: Progress, *, endpoint: str | None = None
    ) -> None:
        self._source = source
        self._cache = ModelCache(root, source)
        self._rules = rules
        self._progress = progress
        self._hub = HubClient(source, endpoint=endpoint)
        self._lock = CacheLock(self._cache.own, self._cache.folder_name)
        self._patience = Patience(rules.patience_s, progress, where=self._hub.endpoint, what=source.repository)

    def ensure(self) -> ModelSnapshot:
        """Return the folder, downloaded first as far as it has to be.

        Raises:
            StartError: MODEL_NOT_FOUND, GATED_REPO, UNAUTHORIZED, HUB_UNREACHABLE, DISK_FULL, CORRUPT_FILE.
        """
        try:
            ready = self._find_ready(self._find_pinned())
            if ready is not None:
                return ready
            with self._lock.hold(lambda: self._progress.look().to_json(), self._progress.mirror):
                return self._ensure_locked()
        except OSError as error:
            raise self._explain(error) from error
        finally:
            self._hub.close()

    def _find_pinned(self) -> str | None:
        if self._source.commit or self._rules.pinned_commit:
            return self._source.commit or self._rules.pinned_commit
        return self._cache.read_pin(self._rules.pin) if self._rules.pin else None

    def _find_ready(self, commit: str | None) -> ModelSnapshot | None:
        """Return the folder if it is complete and nothing of it changed since it was verified."""
        listed = self._cache.read_listing(commit) if commit and not self._rules.verifies_all else None
        if commit is None or listed is None:
            return None
        files = select_files(listed, with_code=self._source.with_code)
        return self._finish(files, commit) if self._cache.is_complete(files, commit) else None

    def _finish(self, files: Iterable[RemoteFile], commit: str) -> ModelSnapshot:
        num_bytes = sum(file.size for file in files)
        self._progress.enter(Stage.VERIFYING, total_bytes=num_bytes, downloaded_bytes=num_bytes)
        return ModelSnapshot(folder=self._cache.snapshot(commit), commit=commit, num_bytes=num_bytes)

    def _ensure_locked(self) -> ModelSnapshot:
        self._progress.enter(Stage.RESOLVING, total_bytes=0, downloaded_bytes=0)
        self._patience.feed()
        # Whoever held the lock before may have pinned, or fetched it all.
        commit = self._find_pinned() or self._resolve()
        ready = self._find_ready(commit)
        if ready is None:
            listed = self._list(commit)
            if listed is None:
                return self._accept_unlisted(commit)
            files = select_files(listed, with_code=self._source.with_code)
            self._fetch_all(files, commit)
            ready = self._finish(files, commit)
        if self._rules.pin and self._source.commit is None:
            self._cache.write_pin(self._rules.pin, commit)
        return ready

    def _resolve(self) -> str:
        """Return the commit that the revision is now; where the hub does not say, the last that the cache knows."""
        known = self._cache.read_ref()
        if known is not None and not self._cache.snapshot(known).is_dir():
            known = None
        if not self._rules.is_offline:
            try:
                commit = self._ask(self._hub.resolve, can_do_without=known is not None)
            except StartError as error:
                if known is None or error.exit_code is not ExitCode.HUB_UNREACHABLE:
                    raise
                _logger.warning("%s The cache's commit %s is taken", error.sentence, known)
            else:
                self._cache.write_ref(commit)
                return commit
        if known is None:
            raise self._absent()
        return known

    def _absent(self) -> StartError:
        sentence = f"{self._source} is not in the cache {self._cache.root}, and HF_HUB_OFFLINE forbids to fetch it."
        return StartError(ExitCode.MODEL_NOT_FOUND, sentence)

    def _list(self, commit: str) -> tuple[RemoteFile, ...] | None:
        """Return all files of the commit; None where only the cache has the commit, and not its list."""
        listed = self._cache.read_listing(commit)
        if listed is not None:
            return listed
        is_there = (self._cache.snapshot(commit) / "config.json").exists()
        if self._rules.is_offline:
            if is_there:
                return None
            raise self._absent()
        try:
            listed = self._ask(lambda: self._hub.list_files(commit), can_do_without=is_there)
        except StartError as error:
            if is_there and error.exit_code is ExitCode.HUB_UNREACHABLE:
                return None
            raise
        self._cache.write_listing(commit, listed)
        return listed

    def _accept_unlisted(self, commit: str) -> ModelSnapshot:
        """Take a folder that another tool filled, of whose files nobody can say now what they should be."""
        folder = self._cache.snapshot(commit)
        _logger.warning("%s is taken as it is: neither cache nor hub lists its files", folder)
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        return ModelSnapshot(folder=folder, commit=commit, num_bytes=num_bytes)

    def _ask(self, question: Callable[[], AnswerT], *, can_do_without: bool) -> AnswerT:
        started, attempt = time.monotonic(), 0
        while True:
            try:
                answer = question()
            except HubTroubleError as trouble:
                if can_do_without and time.monotonic() - started > _SHORT_PATIENCE_S:
                    sentence = f"The hub at {self._hub.endpoint} does not answer: {trouble.reason}."
                    raise StartError(ExitCode.HUB_UNREACHABLE, sentence) from trouble
                self._patience.bear(trouble, attempt)
                attempt += 1
            else:
                self._patience.feed()
                self._progress.note_trouble(None)
                return answer

    def _fetch_all(self, files: Sequence[RemoteFile], commit: str) -> None:
        total = sum(file.size for file in files)
        if self._rules.max_bytes is not None and total > self._rules.max_bytes:
            raise StartError(
                ExitCode.DISK_FULL,
                f"{self._source} takes {format_bytes(total)}, and its cache may hold "
                f"{format_bytes(self._rules.max_bytes)} at most.",
            )
        self._progress.enter(Stage.VERIFYING, total_bytes=total, downloaded_bytes=0)
        missing = self._find_missing(files, commit)
        if missing and self._rules.is_offline:
            raise StartError(
                ExitCode.CORRUPT_FILE,
                f"{missing[0].path} of {self._source} is missing or wrong in the cache {self._cache.root}, and "
                "HF_HUB_OFFLINE forbids to fetch it.",
            )
        partial = sum(map(self._cache.count_partial_bytes, missing))
        self._check_space(sum(file.size for file in missing) - partial)
        present = total - sum(file.size for file in missing)
        self._progress.enter(Stage.DOWNLOADING, total_bytes=total, downloaded_bytes=present + partial)
        if missing:
            self._download(missing, commit)
        for file in files:
            self._cache.link(file, commit)
        self._cache.write_verified(files, commit)

    def _find_missing(self, files: Sequence[RemoteFile], commit: str) -> list[RemoteFile]:
        """Read through what is there and was not verified, take away what is wrong, return what is to be fetched."""
        verified = {} if self._rules.verifies_all else self._cache.read_verified()
        present = [file for file in files if self._cache.find(file, commit) is not None]
        missing = [file for file in files if file not in present]

        def check(file: RemoteFile) -> None:
            path = self._cache.find(file, commit)
            is_known = self._cache.is_verified(file, commit, verified)
            if path is not None and not is_known and not is_right(path, file, self._patience):
                _logger.warning("%s in the cache is not what it should be; fetching it again", path)
                self._cache.discard(file, commit)
                missing.append(file)
                return
            self._progress.add(file.size)

        self._run(check, present)
        return sorted(missing, key=lambda file: (-file.size, file.path))

    def _check_space(self, needed: int) -> None:
        free = self._cache.count_free_bytes()
        if needed > free:
            raise StartError(
                ExitCode.DISK_FULL,
                f"{self._source} needs {format_bytes(needed)} more in the cache {self._cache.root}, which has "
                f"{format_bytes(free)} free.",
            )

    def _download(self, files: Sequence[RemoteFile], commit: str) -> None:
        num_bytes, started = sum(file.size for file in files), time.monotonic()
        _logger.info("Fetching %s: %d files, %s", self._source, len(files), format_bytes(num_bytes))
        transfer = Transfer(self._hub, self._cache, commit, progress=self._progress, patience=self._patience)
        self._run(transfer.fetch, files)
        _logger.info("Fetched %s in %.1f s", self._source, time.monotonic() - started)

    def _run(self, work: Callable[[RemoteFile], None], files: Sequence[RemoteFile]) -> None:
        """Work on all files, some at a time; the first failure ends all of them and is raised."""
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            futures = [pool.submit(work, file) for file in files]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [error for future in done if (error := future.exception()) is not None]
            if failed:
                self._patience.stop()
        failed += [error for future in futures if (error := future.exception()) is not None]
        for error in failed:
            if not isinstance(error, StoppedError):
                raise error

    def _explain(self, error: OSError) -> StartError:
        root = self._cache.root
        if error.errno in _NO_SPACE:
            now = self._progress.look()
            needed = format_bytes(max(now.total_bytes - now.downloaded_bytes, 0))
            free = format_bytes(self._cache.count_free_bytes())
            return StartError(
                ExitCode.DISK_FULL,
                f"The cache {root} is full: {self._source} needs {needed} more, {free} are free.",
            )
        if error.errno in _NO_WRITING:
            return StartError(ExitCode.DISK_FULL, f"The cache {root} cannot be written: {error.strerror}.")
        return StartError(ExitCode.CORRUPT_FILE, f"The cache {root} cannot be used: {error}.")
