"""What this machine can do at most, measured: the floors that a step's time is held against.

`python -m bench.probe` prints one JSON object. In a process of its own, so that nobody else pays for torch.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

_REPEATS = 7
_READ_BYTES = 2**29
_MATRIX = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """Best of a few: all cores together."""

    read_bytes_per_s: float
    f32_flops_per_s: float
    int8_ops_per_s: float | None
    """None where torch has no int8 product for this machine."""


def measure_peaks() -> Peaks:
    """Reads half a gibibyte and multiplies square matrices, each several times; takes about two seconds."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    data = torch.ones(_READ_BYTES // 4)
    left, right = torch.rand(_MATRIX, _MATRIX), torch.rand(_MATRIX, _MATRIX)
    num_ops = 2 * _MATRIX**3
    return Peaks(
        read_bytes_per_s=_READ_BYTES / _best_seconds(data.sum),
        f32_flops_per_s=num_ops / _best_seconds(lambda: left @ right),
        int8_ops_per_s=_measure_int8(num_ops),
    )


def _measure_int8(num_ops: int) -> float | None:
    left = torch.randint(-127, 127, (_MATRIX, _MATRIX), dtype=torch.int8)
    right = torch.randint(-127, 127, (_MATRIX, _MATRIX), dtype=torch.int8)
    try:
        return num_ops / _best_seconds(lambda: torch._int_mm(left, right))  # noqa: SLF001 - torch has no public name
    except (RuntimeError, NotImplementedError):
        return None


def _best_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    print(json.dumps(asdict(measure_peaks())))
