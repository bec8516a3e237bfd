from __future__ import annotations

import socket

import aiohttp
import pytest

from dedicate_operator.health import HealthServer


@pytest.mark.parametrize(
    ("fault", "obstacle", "healthz", "readyz"),
    [
        (None, None, (200, "ok"), (200, "ok: leading")),
        (None, "nobody leads", (200, "ok"), (503, "nobody leads")),
        ("watch of Pod hangs", "watch of Pod hangs", (503, "watch of Pod hangs"), (503, "watch of Pod hangs")),
    ],
)
async def test_probes(fault, obstacle, healthz, readyz):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = HealthServer(
        port, find_fault=lambda: fault, find_obstacle=lambda: obstacle, describe_role=lambda: "leading"
    )
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            for path, expected in (("/healthz", healthz), ("/readyz", readyz)):
                async with client.get(path) as response:
                    assert (response.status, await response.text()) == (expected[0], f"{expected[1]}\n")
    finally:
        await server.stop()
