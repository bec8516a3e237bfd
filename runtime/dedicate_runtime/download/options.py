"""The options of a download, from the command line and the environment; docs/contract.md has the table."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dedicate_runtime.download.repository import COMMIT, ModelSource
from dedicate_runtime.errors import ExitCode, StartError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCHEME = "hf://"
_HUB_MODEL = re.compile(rf"{_SCHEME}[\w.-]+/[\w.-]+")
_PIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]{0,99}")
_SECONDS = re.compile(r"\d{1,6}")
_BYTES = re.compile(r"\d{1,18}")
_ENVIRONMENT_PREFIX = "DEDICATE_"


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadOptions:
    """All that a download is told, checked.

    Attributes:
        link: symbolic link to make to the folder of the model.
        pinned_commit_file: file that may hold the commit to take, made later than the pod or never.
    """

    source: ModelSource
    link: Path
    pin: str | None
    pinned_commit_file: Path | None
    max_bytes: int | None
    patience_s: float
    verifies_all: bool
    host: str
    management_port: int
    failure_file: Path | None
    log_level: str

    def read_pinned_commit(self) -> str | None:
        """Return the commit that the file holds, if there is one by now."""
        try:
            text = self.pinned_commit_file.read_text(encoding="utf-8").strip() if self.pinned_commit_file else ""
        except (OSError, ValueError):
            return None
        return text if COMMIT.fullmatch(text) else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise StartError(ExitCode.INVALID_ARGUMENTS, f"{message[:1].upper()}{message[1:]}.")


def parse_options(arguments: Sequence[str], environment: Mapping[str, str]) -> DownloadOptions:
    """Read the options; the command line wins over the environment.

    Raises:
        StartError: INVALID_ARGUMENTS; the sentence names the option.
    """
    parser = build_parser(environment)
    found = parser.parse_args(list(arguments))
    for name in ("model", "link"):
        if getattr(found, name) is None:
            parser.error(f"--{name} is needed")
    return DownloadOptions(
        source=ModelSource(
            repository=found.model.removeprefix(_SCHEME),
            revision=found.revision,
            with_code=found.trust_remote_code,
        ),
        link=Path(found.link),
        pin=found.pin,
        pinned_commit_file=Path(found.pinned_commit_file) if found.pinned_commit_file else None,
        max_bytes=int(found.max_cache_bytes) if found.max_cache_bytes else None,
        patience_s=float(found.patience_seconds),
        verifies_all=found.verify == "all",
        host=found.host,
        management_port=int(found.management_port),
        failure_file=Path(found.failure_file) if found.failure_file else None,
        log_level=found.log_level,
    )


def build_parser(environment: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return the parser, with what the environment says as defaults."""
    parser = _Parser(prog="dedicate-download", description=__doc__, allow_abbrev=False)

    def option(name: str, default: str | None, help_: str, pattern: re.Pattern[str] | None = None) -> None:
        def parse(text: str) -> str:
            if pattern is not None and not pattern.fullmatch(text):
                raise argparse.ArgumentTypeError(f"cannot be {text!r}")
            return text

        parser.add_argument(name, type=parse, default=environment.get(_variable(name)) or default, help=help_)

    option("--model", None, "hf://org/name", _HUB_MODEL)
    option("--revision", None, "branch, tag or commit")
    with_code = environment.get(_variable("--trust-remote-code"), "").lower() in {"1", "true", "yes"}
    parser.add_argument("--trust-remote-code", action="store_true", default=with_code, help="fetch modelling code, too")
    option("--link", None, "symbolic link to make to the model's folder")
    option("--pin", None, "name under which the commit of the first download is kept in the cache", _PIN)
    option("--pinned-commit-file", None, "file that may hold the commit to take")
    option("--max-cache-bytes", None, "what the cache may hold", _BYTES)
    option("--patience-seconds", "60", "how long the hub may deliver nothing", _SECONDS)
    option(
        "--verify", "changed", "changed or all: which files of the cache are read through", re.compile("changed|all")
    )
    option("--host", "0.0.0.0", "address of the page that tells the progress")  # noqa: S104 - a pod serves its network
    option("--management-port", "9000", "its port; 0 takes a free one", re.compile(r"\d{1,5}"))
    option("--failure-file", None, "where the sentence of a failure, or the outcome, is written")
    option("--log-level", "info", "debug, info, warning or error", re.compile("debug|info|warning|error"))
    return parser


def _variable(option: str) -> str:
    return _ENVIRONMENT_PREFIX + option.removeprefix("--").replace("-", "_").upper()
