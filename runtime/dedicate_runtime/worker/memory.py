"""How much memory is there to take: of the device, of the machine, of the container."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

_MEMINFO = Path("/proc/meminfo")
_CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
"""Limit, use and statistics of the container's own memory, in versions 2 and 1."""


def count_free_bytes(device: torch.device) -> int:
    """Bytes that could be allocated on `device` now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    candidates = [_read_available(), _read_cgroup_free(), _read_address_space()]
    return min((candidate for candidate in candidates if candidate is not None), default=2**63 - 1)


def _read_available() -> int | None:
    if not _MEMINFO.exists():
        return None
    for line in _MEMINFO.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _read_cgroup_free() -> int | None:
    for limit_file, usage_file, statistics_file in _CGROUPS:
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


def format_bytes(count: int) -> str:
    """`1.5 GiB`, for sentences."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
