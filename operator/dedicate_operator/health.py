"""What the process answers over HTTP: probes, and on a port of their own metrics.

`/healthz` says that this process makes progress, `/readyz` that it leads or can take over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

Handler = Callable[[web.Request], Awaitable[web.Response]]


class _Server:
    """Answers some paths on a port of its own."""

    def __init__(self, port: int, routes: Mapping[str, Handler]) -> None:
        self._port = port
        application = web.Application()
        application.add_routes([web.get(path, answer) for path, answer in routes.items()])
        self._runner = web.AppRunner(application, access_log=None)

    async def start(self) -> None:
        """Listen on every address, since the kubelet and Prometheus ask from outside the pod."""
        await self._runner.setup()
        await web.TCPSite(self._runner, None, self._port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()


class HealthServer(_Server):
    """Answers the probes; knows only the questions it asks."""

    def __init__(
        self,
        port: int,
        *,
        find_fault: Callable[[], str | None],
        find_obstacle: Callable[[], str | None],
        describe_role: Callable[[], str],
    ) -> None:
        super().__init__(port, {"/healthz": self._live, "/readyz": self._ready})
        self._find_fault = find_fault
        self._find_obstacle = find_obstacle
        self._describe_role = describe_role

    async def _live(self, _request: web.Request) -> web.Response:
        return _answer(self._find_fault(), "ok")

    async def _ready(self, _request: web.Request) -> web.Response:
        return _answer(self._find_obstacle(), f"ok: {self._describe_role()}")


class MetricsServer(_Server):
    """Answers `/metrics` in Prometheus' text format."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        super().__init__(port, {"/metrics": self._render})
        self._registry = registry

    async def _render(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _answer(problem: str | None, text: str) -> web.Response:
    return web.Response(text=f"{text}\n") if problem is None else web.Response(text=f"{problem}\n", status=503)
