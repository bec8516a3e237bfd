"""Lay the small real model out as a volume wants it: one folder, with a folder for each model below it."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from dev.model.api import ensure_model

MODEL_FOLDER = "smollm"


def ensure_models_folder() -> Path:
    """Return a folder with the model in `smollm/`, readable by any user; links to the cached files, no copies."""
    model = ensure_model()
    folder = model.parent / f"volume-{model.name}"
    target = folder / MODEL_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    for parent in (folder, target):
        parent.chmod(0o755)
    for file in model.iterdir():
        link = target / file.name
        if link.exists() and link.samefile(file):
            continue
        link.unlink(missing_ok=True)
        with suppress(FileExistsError):  # another process was faster
            _link(file, link)
    return folder


def _link(file: Path, link: Path) -> None:
    try:
        os.link(file, link)
    except PermissionError:
        shutil.copy(file, link)
