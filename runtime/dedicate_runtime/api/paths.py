"""Paths as clients ask for them: by HEAD, after a base URL that ends in a slash, with a slash too many at the end."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import APIRouter
    from starlette.types import ASGIApp, Receive, Scope, Send

_SLASHES = re.compile("//+")


class LenientPaths:
    """Reads `/x/v1//models/` as `/x/v1/models`. A redirect would not do: clients do not follow one with a POST."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"] = _SLASHES.sub("/", scope["path"]).rstrip("/") or "/"
        await self._app(scope, receive, send)


def add_readable(router: APIRouter, path: str, endpoint: Callable[..., Any], docs: dict[str, Any]) -> None:
    """Adds a route that answers GET, and HEAD as uptime checks send it; the server leaves out the body.

    `docs` are those of `documentation.answer_docs`.
    """
    router.add_api_route(path, endpoint, methods=["GET"], response_model=docs["responses"][200]["model"], **docs)
    router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
