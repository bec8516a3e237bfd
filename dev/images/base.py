"""The base image where no registry offers one: Debian with Python, by debootstrap.

It stands in for `python:3.11-slim-bookworm`, which the Dockerfiles name by default. Cached as a tar archive; the key
covers what is installed, not what Debian publishes and not how this file is worded: each change of it makes the
dependencies' layers anew. A point release comes with `make clean`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from dev.images.command import run_logged
from dev.paths import cache_dir, content_key

PYTHON_VERSION = "3.11"
_SUITE = "bookworm"
_PACKAGES = ("ca-certificates", "python3")
# Nothing that runs reads these; a third of the size.
_NEEDLESS = (
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/lintian",
    "var/lib/apt/lists", "var/cache/apt", "var/cache/debconf", "var/log",
)  # fmt: skip
# Times stay: Python checks its byte code against them. debootstrap leaves devices behind.
_TAR_OPTIONS = ("--numeric-owner", "--sort=name", "--exclude=./dev/*")
_DEBOOTSTRAP_TIMEOUT_S = 900  # arbitrary: 60 MB of packages over a slow line

DOCKERFILE = Path(__file__).with_name("base.Dockerfile")
KEY = content_key([DOCKERFILE], salt=repr((_SUITE, _PACKAGES, _NEEDLESS, _TAR_OPTIONS)))


def ensure_base_archive(log: Path, say: Callable[[str], None]) -> Path:
    """Return a folder that holds nothing but `base.tar`, making it first where it is missing.

    Raises:
        ImageError: debootstrap or tar failed; the message names the log.
    """
    folder = cache_dir() / "images" / f"base-{KEY}"
    if folder.exists():
        return folder
    say(f"making the base image: Debian {_SUITE} with Python, about a minute")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as scratch:
        root, result = Path(scratch) / "root", Path(scratch) / "result"
        result.mkdir()
        _bootstrap(root, log)
        tar = ["tar", "--create", f"--directory={root}", *_TAR_OPTIONS, f"--file={result / 'base.tar'}", "."]
        run_logged(tar, log, timeout_s=120)
        result.rename(folder)
    return folder


def _bootstrap(root: Path, log: Path) -> None:
    mirror = os.environ.get("DEBIAN_MIRROR")  # debootstrap knows one itself
    # In a mount namespace of its own, so that /proc of the new system is gone whatever becomes of us.
    command = ["unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(_PACKAGES)}"]
    run_logged([*command, _SUITE, str(root), *([mirror] if mirror else [])], log, timeout_s=_DEBOOTSTRAP_TIMEOUT_S)
    for needless in _NEEDLESS:
        for entry in (root / needless).iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
