"""Where a model comes from: a local folder, or a repository of the Hugging Face hub that is fetched into the cache."""

from __future__ import annotations

import logging
import re
import threading
from pathlib import Path

from huggingface_hub import constants

from dedicate_runtime.download.progress import Progress
from dedicate_runtime.download.repository import ModelSource, format_bytes
from dedicate_runtime.download.snapshot import Downloader, DownloadRules
from dedicate_runtime.errors import ExitCode, StartError

HUB_SCHEME = "hf://"

_logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_PROGRESS_INTERVAL_S = 5.0
"""Between two lines of progress in the log; arbitrary."""


def resolve_model(model: str, revision: str | None, *, with_code: bool) -> Path:
    """Returns the folder of `model`, fetched first where it is on the hub. Interrupted downloads are resumed.

    Raises:
        StartError: MODEL_NOT_FOUND, GATED_REPO, UNAUTHORIZED, HUB_UNREACHABLE, DISK_FULL, CORRUPT_FILE.
    """
    if not model.startswith(HUB_SCHEME):
        return Path(model)
    repository = model.removeprefix(HUB_SCHEME)
    if not _REPOSITORY.fullmatch(repository):
        raise StartError(ExitCode.MODEL_NOT_FOUND, f"{repository} is not a repository id of the form org/name.")
    source = ModelSource(repository=repository, revision=revision, with_code=with_code)
    progress, ended = Progress(), threading.Event()
    rules = DownloadRules(is_offline=constants.is_offline_mode())
    teller = threading.Thread(target=_tell, args=(progress, ended), name="download progress", daemon=True)
    teller.start()
    try:
        return Downloader(source, Path(constants.HF_HUB_CACHE), rules, progress).ensure().folder
    finally:
        ended.set()
        teller.join()


def _tell(progress: Progress, ended: threading.Event) -> None:
    """Writes lines of progress to the log until the download has ended."""
    while not ended.wait(_PROGRESS_INTERVAL_S):
        now = progress.look()
        done, total = format_bytes(now.downloaded_bytes), format_bytes(now.total_bytes)
        _logger.info(
            "Download: %s, %s of %s%s", now.stage.value, done, total, f"; {now.trouble}" if now.trouble else ""
        )
