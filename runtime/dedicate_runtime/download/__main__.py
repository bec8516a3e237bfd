"""Downloads a model and ends: the init container of a pod whose model is on a hub. No torch, no web framework.

It ends with 0 once the whole model is in the cache and verified, and writes which commit that is; else with the code
and the one sentence of what is wrong, as the runtime does.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

from dedicate_runtime.download.options import DownloadOptions, parse_options
from dedicate_runtime.errors import ExitCode, StartError
from dedicate_runtime.logs import configure_logging
from dedicate_runtime.settings import failure_file_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dedicate_runtime.download.snapshot import ModelSnapshot

_logger = logging.getLogger("dedicate_runtime.download")

_TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Run the download that the arguments ask for; gives the process's exit code. Source: docs/contract.md."""
    return run(sys.argv[1:])


def run(arguments: Sequence[str]) -> int:
    """Run a download with these options."""
    # As the first process of a container it would not end by itself; what has been fetched so far is gone on with.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))
    try:
        options = parse_options(arguments, os.environ)
        configure_logging(options.log_level)
        snapshot = _download(options)
        _make_link(options.link, snapshot.folder)
    except StartError as error:
        _end(f"{error.sentence}\n", failure_file_of(arguments, os.environ))
        return int(error.exit_code)
    except Exception:  # the edge: a fault of ours, which ends with its code
        _logger.exception("the download crashed")
        _end("The download crashed; its log has the cause.\n", failure_file_of(arguments, os.environ))
        return int(ExitCode.INTERNAL_ERROR)
    outcome = {"commit": snapshot.commit, "bytes": snapshot.num_bytes}
    _end(f"{json.dumps(outcome)}\n", options.failure_file)
    return 0


def _download(options: DownloadOptions) -> ModelSnapshot:
    # The hub's client reads the environment when it is imported.
    from huggingface_hub import constants  # noqa: PLC0415

    from dedicate_runtime.download.page import serve_progress  # noqa: PLC0415
    from dedicate_runtime.download.progress import Progress  # noqa: PLC0415
    from dedicate_runtime.download.snapshot import Downloader, DownloadRules  # noqa: PLC0415

    rules = DownloadRules(
        pin=options.pin,
        pinned_commit=options.read_pinned_commit(),
        patience_s=options.patience_s,
        max_bytes=options.max_bytes,
        verifies_all=options.verifies_all,
        is_offline=constants.is_offline_mode(),
    )
    progress = Progress()
    with serve_progress(progress, options.host, options.management_port) as port:
        _logger.info("progress is told", extra={"port": port, "model": str(options.source)})
        snapshot = Downloader(options.source, Path(constants.HF_HUB_CACHE), rules, progress).ensure()
    _logger.info("model is cached", extra={"commit": snapshot.commit, "num_bytes": snapshot.num_bytes})
    return snapshot


def _make_link(link: Path, folder: Path) -> None:
    """Make the link lead to the folder, wherever one led before."""
    passing = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    try:
        passing.symlink_to(folder.resolve())
        passing.replace(link)
    except OSError as error:
        raise StartError(ExitCode.INVALID_ARGUMENTS, f"--link {link} cannot be made: {error.strerror}.") from error


def _end(text: str, failure_file: Path | None) -> None:
    """Write the last words where people and the operator look for them, after the log."""
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.write(text)
    if failure_file is None:
        return
    try:
        failure_file.write_text(text, encoding="utf-8")
    except OSError as problem:
        sys.stderr.write(f"--failure-file cannot be written: {problem}\n")


if __name__ == "__main__":
    sys.exit(main())
