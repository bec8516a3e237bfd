"""The administrator of the measured cluster: many requests at once, plain documents in and out."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import tempfile
from collections.abc import Coroutine, Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import yaml

Json = dict[str, Any]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"


class Admin:
    """One connection pool with an administrator's certificate."""

    def __init__(self, kubeconfig: Path, *, num_connections: int) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self._server = cluster["server"].rstrip("/")
        self._context = _build_context(cluster, user)
        self._num_connections = num_connections

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=self._num_connections)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=120))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def request(self, method: str, path: str, body: Json | None = None, type_: str = "application/json") -> Json:
        """Return the answer.

        Raises:
            RuntimeError: it is an error.
        """
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": type_} if data is not None else {}
        async with self._session.request(method, self._server + path, data=data, headers=headers) as response:
            content = await response.read()
            if response.status >= 400:
                raise RuntimeError(f"{method} {path}: {response.status} {content[:500]!r}")
            answer: Json = json.loads(content)
            return answer

    async def get(self, path: str) -> Json:
        return await self.request("GET", path)

    async def create(self, path: str, body: Json) -> Json:
        return await self.request("POST", path, body)

    async def apply(self, path: str, body: Json) -> Json:
        return await self.request("PATCH", f"{path}?fieldManager=bench&force=true", body, APPLY)

    async def merge(self, path: str, body: Json) -> Json:
        return await self.request("PATCH", path, body, MERGE)

    async def delete(self, path: str) -> None:
        await self.request("DELETE", path)

    async def list_all(self, path: str, selector: str = "") -> list[Json]:
        """Return every item of a collection, page by page."""
        items: list[Json] = []
        token = ""
        while True:
            page = await self.get(f"{path}?limit=500&labelSelector={selector}&continue={token}")
            items += page["items"]
            token = page["metadata"].get("continue", "")
            if not token:
                return items


async def run_all(coroutines: Iterable[Coroutine[Any, Any, Json]], *, at_once: int) -> Sequence[Json]:
    """Run them in order, so many at a time; return their results in order."""
    waiting = list(enumerate(coroutines))[::-1]
    found: dict[int, Json] = {}

    async def work() -> None:
        while waiting:
            index, coroutine = waiting.pop()
            found[index] = await coroutine

    async with asyncio.TaskGroup() as workers:
        for _ in range(at_once):
            workers.create_task(work())
    return [found[index] for index in sorted(found)]


def _build_context(cluster: Json, user: Json) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    if "client-certificate-data" in user:
        # The standard library reads a client's certificate from files only.
        with tempfile.NamedTemporaryFile() as pair:
            for field in ("client-certificate-data", "client-key-data"):
                pair.write(base64.b64decode(user[field]))
            pair.flush()
            context.load_cert_chain(pair.name)
    else:
        context.load_cert_chain(user["client-certificate"], user["client-key"])
    return context
