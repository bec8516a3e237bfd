from __future__ import annotations

import socket

import aiohttp
import pytest

from dedicate_operator.health import HealthServer


@pytest.mark.parametrize(
    ("fault", "is_ready", "healthz", "readyz"),
    [(None, True, 200, 200), (None, False, 200, 503), ("watch of Pod hangs", False, 503, 503)],
)
async def test_probes(fault, is_ready, healthz, readyz):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = HealthServer(port, find_fault=lambda: fault, is_ready=lambda: is_ready)
    await server.start()
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as client:
            async with client.get("/healthz") as response:
                assert response.status == healthz
                assert (fault or "ok") in await response.text()
            async with client.get("/readyz") as response:
                assert response.status == readyz
    finally:
        await server.stop()
