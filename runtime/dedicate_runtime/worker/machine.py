"""What there is to take: memory of the device, of the machine, of the container; and its CPUs."""

from __future__ import annotations

import math
import os
import resource
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_MEMORY_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit, use and statistics of the container's own memory, in versions 2 and 1 of cgroups."""


def count_free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    candidates = [_read_available(), read_container_memory(_CGROUP), _read_address_space()]
    return min((candidate for candidate in candidates if candidate is not None), default=2**63 - 1)


def _read_available() -> int | None:
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def read_container_memory(cgroup: Path) -> int | None:
    """Bytes that the container may still take; None if nothing limits it."""
    for names in _MEMORY_FILES:
        limit_file, usage_file, statistics_file = (cgroup / name for name in names)
        if limit_file.exists() and usage_file.exists():
            limit = limit_file.read_text().strip()
            if limit == "max":
                return None
            # Cached files count as used, weights that were just read among them, but give way when memory is wanted.
            statistics = dict(line.split() for line in statistics_file.read_text().splitlines())
            cached = int(statistics.get("inactive_file", 0)) + int(statistics.get("active_file", 0))
            return max(int(limit) - int(usage_file.read_text()) + cached, 0)
    return None


def _read_address_space() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return None if soft == resource.RLIM_INFINITY else soft


def count_usable_cpus() -> int:
    """CPUs that this process may use: its affinity, and its container's quota rounded up."""
    num_cpus = len(os.sched_getaffinity(0))
    quota = read_container_cpus(_CGROUP)
    return num_cpus if quota is None else max(min(num_cpus, math.ceil(quota)), 1)


def read_container_cpus(cgroup: Path) -> float | None:
    """CPUs that the container may keep busy, 0.5 for half of one; None if nothing limits it."""
    version_2 = cgroup / "cpu.max"
    version_1 = cgroup / "cpu" / "cpu.cfs_quota_us"
    if version_2.exists():
        quota, period = version_2.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    if version_1.exists():
        quota_us = int(version_1.read_text())
        # -1 where there is no limit.
        return None if quota_us < 0 else quota_us / int((version_1.parent / "cpu.cfs_period_us").read_text())
    return None


def format_bytes(count: int) -> str:
    """`1.5 GiB`, for sentences."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
