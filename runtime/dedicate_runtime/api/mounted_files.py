"""Keys and limits as their mounted files have them now: looked at once a second, in a thread of its own.

A client whose key has gone is forgotten after a while, so that what is kept of clients does not grow with rotations.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from dedicate_runtime.api.limits_file import LimitsError

if TYPE_CHECKING:
    from dedicate_runtime.api.keys import KeyId, KeyRing
    from dedicate_runtime.api.limits import Limiter
    from dedicate_runtime.api.limits_file import LimitsFile
    from dedicate_runtime.api.usage import UsageBook
    from dedicate_runtime.metrics import Metrics

_log = logging.getLogger(__name__)
LOOK_AGAIN_S = 1.0
FORGET_AFTER_S = 7200.0
"""Twice the longest request, by default: what counts for a client that is gone has ended and has been scraped."""


class MountedFiles:
    """Keeps the key ring and the limiter in step with their files. `keys` or `limits_file` is None where unused."""

    def __init__(
        self,
        *,
        keys: KeyRing | None,
        limits_file: LimitsFile | None,
        limiter: Limiter | None,
        usage: UsageBook,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = keys
        self._limits_file = limits_file
        self._limiter = limiter
        self._usage = usage
        self._metrics = metrics
        self._clock = clock
        self._known: frozenset[KeyId] = keys.ids if keys is not None else frozenset()
        self._gone_at: dict[KeyId, float] = {}
        if keys is not None:
            metrics.observe_keys(len(keys.ids), is_current=keys.is_current)
        if limits_file is not None:
            metrics.observe_limits(is_current=True)

    async def watch(self, *, pause_s: float = LOOK_AGAIN_S) -> NoReturn:
        """Refreshes again and again; a fault of ours is told, and must not end it, or revoked keys would work on."""
        while True:
            try:
                await self.refresh()
            except Exception:  # noqa: BLE001 - whatever it was, the log has it
                _log.exception("Mounted files cannot be looked at")
            await asyncio.sleep(pause_s)

    async def refresh(self) -> None:
        """Takes up what has changed; what cannot be used changes nothing, and is told in the log and the metrics."""
        if self._keys is not None:
            await asyncio.to_thread(self._keys.reload)
            self._metrics.observe_keys(len(self._keys.ids), is_current=self._keys.is_current)
            self._forget_the_gone(self._keys.ids)
        if self._limits_file is not None and self._limiter is not None:
            await self._refresh_limits(self._limits_file, self._limiter)

    async def _refresh_limits(self, file: LimitsFile, limiter: Limiter) -> None:
        try:
            policy = await asyncio.to_thread(file.read_if_changed)
        except LimitsError as error:
            self._metrics.observe_limits(is_current=False)
            _log.warning("Limits stay as they were", extra={"problem": str(error)})
            return
        if policy is not None:
            limiter.replace(policy)
            self._metrics.observe_limits(is_current=True)
            _log.info("Limits loaded", extra={"num_clients": len(policy.by_client)})

    def _forget_the_gone(self, present: frozenset[KeyId]) -> None:
        now = self._clock()
        for key_id in self._known - present:
            self._gone_at[key_id] = now
        for key_id in present & self._gone_at.keys():
            del self._gone_at[key_id]
        self._known = present
        for key_id in [key_id for key_id, gone_at in self._gone_at.items() if now - gone_at >= FORGET_AFTER_S]:
            del self._gone_at[key_id]
            self._usage.forget(key_id)
            self._metrics.forget_client(key_id)
            if self._limiter is not None:
                self._limiter.forget(key_id)
