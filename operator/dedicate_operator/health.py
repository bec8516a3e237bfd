"""The probes' endpoint: `/healthz` says that work goes on, `/readyz` that it has begun."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web


class HealthServer:
    """Answers two paths on a port of its own; knows only the two questions it asks."""

    def __init__(self, port: int, *, find_fault: Callable[[], str | None], is_ready: Callable[[], bool]) -> None:
        self._port = port
        self._find_fault = find_fault
        self._is_ready = is_ready
        application = web.Application()
        application.add_routes([web.get("/healthz", self._live), web.get("/readyz", self._ready)])
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        """Listen on every address, since the kubelet asks from outside the pod."""
        await self._runner.setup()
        await web.TCPSite(self._runner, None, self._port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _live(self, _request: web.Request) -> web.Response:
        fault = self._find_fault()
        return web.Response(text="ok\n") if fault is None else web.Response(text=f"{fault}\n", status=503)

    async def _ready(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if self._is_ready() else web.Response(text="not synced\n", status=503)
