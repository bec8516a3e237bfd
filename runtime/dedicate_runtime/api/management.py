"""Probes and metrics, on a port of their own that no route exposes. Answers while the model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

    from dedicate_runtime.api.readiness import Readiness


def create_management_app(readiness: Readiness, registry: CollectorRegistry) -> Starlette:
    """Builds `/healthz`, `/readyz`, `/startupz` and `/metrics`. Source of their meaning: docs/contract.md."""

    async def healthz(_: Request) -> Response:
        return _probe("" if readiness.is_alive else "the engine has ended or makes no progress")

    async def readyz(_: Request) -> Response:
        problem = readiness.problem
        return _probe("" if problem is None else problem.message)

    async def startupz(_: Request) -> Response:
        return _probe("" if readiness.is_started else "the model is still loading")

    async def metrics(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return Starlette(
        routes=[
            Route("/healthz", healthz),
            Route("/readyz", readyz),
            Route("/startupz", startupz),
            Route("/metrics", metrics),
        ]
    )


def _probe(problem: str) -> Response:
    return PlainTextResponse(problem or "ok", status_code=503 if problem else 200)
