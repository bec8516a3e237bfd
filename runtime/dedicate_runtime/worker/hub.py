"""Where a model comes from: a local folder, or a repository of the Hugging Face hub that is fetched into the cache."""

from __future__ import annotations

import errno
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm.std import tqdm

from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Iterator

HUB_SCHEME = "hf://"

_logger = logging.getLogger(__name__)

_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_WANTED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "LICENSE*")
_UNWANTED = ("original/*", "consolidated*", "onnx/*", "openvino/*", "*.gguf")
"""The same weights in other formats, which some repositories carry beside ours."""

_PROGRESS_INTERVAL_S = 5.0
"""Between two lines of progress in the log; arbitrary."""


def resolve_model(model: str, revision: str | None, *, with_code: bool) -> Path:
    """Returns the folder of `model`, fetched first where it is on the hub. Interrupted downloads are resumed.

    Raises:
        StartError: MODEL_NOT_FOUND, GATED_REPO, HUB_UNREACHABLE, DISK_FULL.
    """
    if not model.startswith(HUB_SCHEME):
        return Path(model)
    repo = model.removeprefix(HUB_SCHEME)
    named = repo if revision is None else f"{repo} at revision {revision}"
    _logger.info("Fetching %s from %s", named, constants.ENDPOINT)
    started = time.monotonic()
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[*_WANTED, "*.py"] if with_code else list(_WANTED),
            ignore_patterns=list(_UNWANTED),
            tqdm_class=_LoggedProgress,
        )
    except Exception as error:  # the edge: whatever the hub's client raises becomes one sentence
        raise _explain(error, repo, revision) from error
    _logger.info("Fetched %s in %.1f s", named, time.monotonic() - started)
    return Path(folder)


def _explain(error: Exception, repo: str, revision: str | None) -> StartError:
    """The one sentence for a failed download, by what lies at the bottom of it."""
    causes = list(_iterate_causes(error))
    status = next((cause.response.status_code for cause in causes if isinstance(cause, HfHubHTTPError)), None)

    def is_any(*kinds: type[Exception]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if any(isinstance(cause, OSError) and cause.errno in _NO_SPACE for cause in causes):
        code, sentence = ExitCode.DISK_FULL, f"The cache {constants.HF_HUB_CACHE} is full; {repo} does not fit."
    elif is_any(PermissionError):
        code, sentence = ExitCode.DISK_FULL, f"The cache {constants.HF_HUB_CACHE} cannot be written."
    elif is_any(HFValidationError):
        code, sentence = ExitCode.MODEL_NOT_FOUND, f"{repo} is not a repository id of the form org/name."
    elif is_any(RevisionNotFoundError):
        code, sentence = ExitCode.MODEL_NOT_FOUND, f"The repository {repo} has no revision {revision or 'main'}."
    elif status in {401, 403} or is_any(GatedRepoError):
        code = ExitCode.GATED_REPO
        sentence = (
            f"The hub answered {status} for {repo}: it is gated or private, or does not exist, and the token is "
            "missing, wrong or without access."
        )
    elif status == 404 or is_any(RepositoryNotFoundError):
        code, sentence = ExitCode.MODEL_NOT_FOUND, f"The hub at {constants.ENDPOINT} has no repository {repo}."
    elif is_any(LocalEntryNotFoundError) and constants.is_offline_mode():
        code = ExitCode.MODEL_NOT_FOUND
        sentence = f"{repo} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to fetch it."
    else:
        reason = f"status {status}" if status is not None else type(causes[-1]).__name__
        code = ExitCode.HUB_UNREACHABLE
        sentence = f"The hub at {constants.ENDPOINT} did not deliver {repo}: {reason}."
    return StartError(code, sentence)


def _iterate_causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


class _LoggedProgress(tqdm):  # type: ignore[misc]
    """A progress bar that writes lines to the log, not to a terminal."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._logged_at = time.monotonic()
        super().__init__(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:  # noqa: ARG002 - tqdm's signature
        now = time.monotonic()
        if self.unit == "B" and self.n and now - self._logged_at >= _PROGRESS_INTERVAL_S:
            self._logged_at = now
            _logger.info("Fetched %.1f of %.1f MiB", self.n / 2**20, (self.total or 0) / 2**20)
        return True
