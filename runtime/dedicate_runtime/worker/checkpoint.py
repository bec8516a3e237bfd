"""What a model folder holds, checked before anything is loaded from it. No torch.

A safetensors file begins with the length of its header (8 bytes, little endian), then the header as JSON: for each
tensor its dtype, shape and byte range behind the header. Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dedicate_runtime.errors import ExitCode, StartError

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder whose weights are all there. `num_elements` counts the numbers of all tensors."""

    folder: Path
    files: tuple[Path, ...]
    num_elements: int
    num_bytes: int


def check_folder(folder: Path) -> Checkpoint:
    """Reads the headers of all weight files and compares them with the files' sizes.

    Raises:
        StartError: MODEL_NOT_FOUND, MODEL_CORRUPT, or UNSUPPORTED_MODEL where the weights are in another format.
    """
    if not folder.is_dir():
        raise StartError(ExitCode.MODEL_NOT_FOUND, f"The model folder {folder} does not exist.")
    read_json(folder / "config.json")
    num_elements = num_bytes = 0
    files = tuple(_find_weight_files(folder))
    for path in files:
        elements = _check_weight_file(path)
        num_elements += elements
        num_bytes += path.stat().st_size
    return Checkpoint(folder=folder, files=files, num_elements=num_elements, num_bytes=num_bytes)


def read_json(path: Path) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        StartError: MODEL_CORRUPT if the file is missing, unreadable or something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} is missing.") from error
    except OSError as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} does not hold a JSON object.")
    return content


def _find_weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise StartError(ExitCode.MODEL_CORRUPT, f"{index} has no valid weight_map.")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / _SINGLE).exists():
        return [folder / _SINGLE]
    others = sorted(path.name for suffix in ("*.bin", "*.gguf", "*.pth") for path in folder.glob(suffix))
    if others:
        raise StartError(
            ExitCode.UNSUPPORTED_MODEL, f"{folder} has its weights in {others[0]}; only safetensors are loaded."
        )
    raise StartError(ExitCode.MODEL_CORRUPT, f"{folder / _SINGLE} is missing.")


def _check_weight_file(path: Path) -> int:
    """Returns the number of elements of all tensors."""
    num_elements: int
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            header = file.read(header_size) if header_size <= min(size - 8, _MAX_HEADER_BYTES) else b""
    except FileNotFoundError as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} is missing.") from error
    except OSError as error:
        raise StartError(ExitCode.MODEL_CORRUPT, f"{path} cannot be read: {error.strerror}.") from error
    try:
        entries = json.loads(header)
        tensors = [entry for name, entry in entries.items() if name != "__metadata__"]
        data_size = max((entry["data_offsets"][1] for entry in tensors), default=0)
        num_elements = sum(math.prod(entry["shape"]) for entry in tensors)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StartError(
            ExitCode.MODEL_CORRUPT, f"{path} is truncated or not a safetensors file: its header cannot be read."
        ) from error
    expected = 8 + header_size + data_size
    if size != expected:
        raise StartError(
            ExitCode.MODEL_CORRUPT,
            f"{path} has {size} bytes where its header says {expected}: it is truncated or damaged.",
        )
    return num_elements
