"""Asks the downloads that run how far they are, and tells the reconciler now and then.

Besides the watches, because a download changes nothing in the API server while it runs. Reconciles never wait for it:
it asks in its own time, each pod with a deadline, and a pod that does not answer is asked less and less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import httpx2

from dedicate_operator import names
from dedicate_operator.diagnosis import is_downloading
from dedicate_operator.identity import Key
from dedicate_operator.kinds import Json
from dedicate_operator.observed import is_terminating
from dedicate_operator.situation import DownloadProgress

_LOG = logging.getLogger(__name__)

PERIOD_S = 2.0
_SILENT_PERIOD_S = 60.0
_DEADLINE_S = 2.0
_MAX_AT_ONCE = 16
_MAX_ANSWER_BYTES = 4096
# What is told costs a write: every 10 s, or every twentieth part of it all.
_TELL_PERIOD_S = 10.0
_TELL_SHARE = 20
_MAX_BYTES = 2**53 - 1
_MAX_TROUBLE_LENGTH = 256


class ProgressSource(Protocol):
    async def fetch_progress(self, address: str) -> DownloadProgress | None:
        """Return what the download in the pod of that address says; None if it says nothing, for whatever reason."""
        ...


class ProgressPage:
    """The page that a download serves."""

    def __init__(self) -> None:
        self._client = httpx2.AsyncClient(timeout=_DEADLINE_S, trust_env=False, follow_redirects=False)

    async def fetch_progress(self, address: str) -> DownloadProgress | None:
        host = f"[{address}]" if ":" in address else address
        try:
            async with (
                asyncio.timeout(_DEADLINE_S),
                self._client.stream("GET", f"http://{host}:{names.MANAGEMENT_PORT}/progress") as response,
            ):
                body = b""
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MAX_ANSWER_BYTES:
                        return None
                return parse_progress(httpx2.Response(200, content=body).json()) if response.is_success else None
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            _LOG.debug("no progress told", extra={"address": address, "error": repr(error)})
            return None

    async def close(self) -> None:
        await self._client.aclose()


def parse_progress(document: Any) -> DownloadProgress | None:
    """Return what the page says, None where it is no progress."""
    if not isinstance(document, dict):
        return None
    stage, trouble = document.get("stage"), document.get("trouble")
    done, total = document.get("downloadedBytes"), document.get("totalBytes")
    if not isinstance(stage, str) or not _is_amount(done) or not _is_amount(total):
        return None
    words = trouble[:_MAX_TROUBLE_LENGTH] if isinstance(trouble, str) else None
    return DownloadProgress(stage, min(done, total), total, words)


def _is_amount(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_BYTES


@dataclass(slots=True)
class _Followed:
    """One endpoint's downloads: whom to ask, when, and what was said and told."""

    addresses: tuple[str, ...]
    due: float
    pause_s: float = PERIOD_S
    told: DownloadProgress | None = None
    told_at: float = 0.0


class Downloads:
    """The downloads that are followed, by endpoint; used from one event loop."""

    def __init__(self, source: ProgressSource, *, notify: Callable[[Key], None], clock: Callable[[], float]) -> None:
        self._source = source
        self._notify = notify
        self._clock = clock
        self._followed: dict[Key, _Followed] = {}
        self._changed = asyncio.Event()

    def follow(self, key: Key, pods: Sequence[Json]) -> DownloadProgress | None:
        """Take note of which of an endpoint's pods download; return what was told of it last."""
        addresses = tuple(filter(None, map(_find_address, pods)))
        if not addresses:
            self.forget(key)
            return None
        followed = self._followed.get(key)
        if followed is None:
            followed = self._followed[key] = _Followed(addresses, due=self._clock())
            self._changed.set()
        followed.addresses = addresses
        return followed.told

    def forget(self, key: Key) -> None:
        self._followed.pop(key, None)

    async def run(self) -> None:
        """Ask, until cancelled."""
        at_once = asyncio.Semaphore(_MAX_AT_ONCE)
        while True:
            now = self._clock()
            due = [(key, item) for key, item in self._followed.items() if item.due <= now]
            async with asyncio.TaskGroup() as asking:
                for key, item in due:
                    asking.create_task(self._ask(key, item, at_once))
            self._changed.clear()
            try:
                async with asyncio.timeout(PERIOD_S if self._followed else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _ask(self, key: Key, followed: _Followed, at_once: asyncio.Semaphore) -> None:
        async with at_once:
            # One is enough: those that wait for another's download say how far that is.
            progress = await self._source.fetch_progress(followed.addresses[0])
        now = self._clock()
        followed.pause_s = PERIOD_S if progress else min(followed.pause_s * 2, _SILENT_PERIOD_S)
        followed.due = now + followed.pause_s
        if progress is not None and is_news(progress, followed.told, now - followed.told_at):
            followed.told, followed.told_at = progress, now
            self._notify(key)


def is_news(progress: DownloadProgress, told: DownloadProgress | None, since_s: float) -> bool:
    """Tell whether a progress is worth a write of the status after what was told `since_s` seconds ago."""
    if told is None or progress.stage != told.stage or (progress.trouble is None) is not (told.trouble is None):
        return True
    if progress == told:
        return False
    has_grown = abs(progress.downloaded_bytes - told.downloaded_bytes) * _TELL_SHARE >= max(progress.total_bytes, 1)
    return has_grown or since_s >= _TELL_PERIOD_S


def _find_address(pod: Json) -> str | None:
    if is_terminating(pod) or not is_downloading(pod):
        return None
    address: str | None = (pod.get("status") or {}).get("podIP")
    return address
