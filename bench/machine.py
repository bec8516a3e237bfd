"""The machine that was measured on, and the memory that processes hold. Reads /proc and nothing else."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

_TELLING_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")
_PROC = Path("/proc")


def describe_cpu() -> dict[str, object]:
    """Gives model name, the flags that matter for matrix products, and how many cores may be used."""
    lines = (_PROC / "cpuinfo").read_text().splitlines()
    fields = dict(line.replace("\t", "").split(": ", 1) for line in reversed(lines) if ": " in line)
    flags = set(fields.get("flags", "").split())
    return {
        "model": fields.get("model name", platform.processor()),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.release(),
    }


def find_process_tree(pid: int) -> list[int]:
    """Gives `pid` and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            try:
                # The name is in brackets and may hold anything; the parent is the second field after it.
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # ended between listing and reading
                continue
            children.setdefault(parent, []).append(int(entry.name))
    tree = [pid]
    for member in tree:
        tree += children.get(member, [])
    return tree


def measure_pss_bytes(pids: Iterable[int]) -> int:
    """Adds up the memory of processes, what they share counted once (proportional set size)."""
    return _sum_memory(pids, "Pss:")


def measure_anonymous_bytes(pids: Iterable[int]) -> int:
    """Adds up the memory that processes have taken for themselves: no mapped file, so no share that others change."""
    return _sum_memory(pids, "Anonymous:")


def measure_cpu_s(pid: int) -> float:
    """Seconds that all threads of one process have computed, to the nanosecond that the scheduler counts."""
    times = [(task / "schedstat").read_text().split()[0] for task in (_PROC / str(pid) / "task").iterdir()]
    return sum(map(int, times)) / 1e9


def measure_resident_bytes(pid: int) -> int:
    """Memory of one process that is in RAM, mapped files included (RSS)."""
    return _sum_memory([pid], "Rss:")


def _sum_memory(pids: Iterable[int], field: str) -> int:
    total = 0
    for pid in pids:
        try:
            lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
        except OSError:  # ended, or a kernel thread
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    return total
