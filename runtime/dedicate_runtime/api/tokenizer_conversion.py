"""Makes a `tokenizer.json` for a model folder that has none, in a process of its own: transformers brings torch along.

Run as `python -m dedicate_runtime.api.tokenizer_conversion FOLDER TARGET`.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Tokenizer

from dedicate_runtime.errors import ExitCode, StartError

_VOCABULARY_FILES = ("vocab.json", "tokenizer.model", "spiece.model", "vocab.txt")
_TIMEOUT_S = 300.0


def can_convert(folder: Path) -> bool:
    """Tells whether the folder has a vocabulary in one of the older forms."""
    return any((folder / name).is_file() for name in _VOCABULARY_FILES)


def converted_tokenizer(folder: Path) -> Tokenizer:
    """Reads an older vocabulary by way of transformers. Takes about ten seconds.

    Raises:
        StartError: transformers cannot read it either.
    """
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "tokenizer.json"
        command = [sys.executable, "-m", __name__, str(folder), str(target)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise _unreadable(folder, f"not done within {_TIMEOUT_S:.0f} s") from error
        if done.returncode or not target.is_file():
            raise _unreadable(folder, (done.stderr.strip().splitlines() or ["no reason given"])[-1])
        return Tokenizer.from_file(str(target))


def _unreadable(folder: Path, reason: str) -> StartError:
    return StartError(ExitCode.MODEL_CORRUPT, f"The tokenizer in {folder} cannot be read: {reason}.")


def _convert(folder: str, target: str) -> None:
    from transformers import AutoTokenizer  # noqa: PLC0415 - only this process needs it

    AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer.save(target)


if __name__ == "__main__":
    _convert(*sys.argv[1:])
