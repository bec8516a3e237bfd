"""What the container leaves us, read from the files of both versions of cgroups."""

from __future__ import annotations

import pytest

from dedicate_runtime.worker.machine import format_bytes, read_container_cpus, read_container_memory


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


@pytest.mark.parametrize(
    ("files", "num_cpus"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2.0),
    ],
)
def test_cpu_quota(tmp_path, files, num_cpus):
    assert read_container_cpus(write(tmp_path, files)) == num_cpus


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, None),
        ({"memory.max": "max\n", "memory.current": "5\n", "memory.stat": ""}, None),
        (
            {
                "memory.max": "1000\n",
                "memory.current": "700\n",
                "memory.stat": "anon 400\ninactive_file 200\nactive_file 50\n",
            },
            550,
        ),
        (
            {
                "memory/memory.limit_in_bytes": "1000\n",
                "memory/memory.usage_in_bytes": "1100\n",
                "memory/memory.stat": "cache 0\n",
            },
            0,
        ),
    ],
)
def test_free_memory_counts_cached_files_as_free(tmp_path, files, free):
    assert read_container_memory(write(tmp_path, files)) == free


def test_bytes_are_told_in_the_unit_that_fits():
    assert format_bytes(3 * 2**30 // 2) == "1.5 GiB"
    assert format_bytes(2**20) == "1.0 MiB"
