"""Keeps the store equal to the cluster: list once, then watch; list again when too much was missed.

A lost watch is an outage, so every way in which a stream ends leads back here: the server's regular end, a cut
connection, a silent one (the client's deadline, longer than the interval of bookmarks), 410 Gone, any error of the
API server.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from dedicate_operator.cluster import ResourceList, WatchEvent
from dedicate_operator.errors import ClusterError
from dedicate_operator.kinds import ENDPOINT, OPTIONAL, SURROUNDING, Json, Kind
from dedicate_operator.names import CHILDREN_SELECTOR
from dedicate_operator.workqueue import Backoff

_LOG = logging.getLogger(__name__)

# Arbitrary; how late it may be noticed that a kind has come to be served.
_UNSERVED_PERIOD_S = 30.0
# With the pauses between them some ten seconds.
_MAX_REFUSALS = 6


class Source(Protocol):
    """Where objects come from."""

    async def fetch_list(
        self, kind: Kind, namespace: str | None, *, labels: str | None = None, fields: str | None = None
    ) -> ResourceList: ...

    def watch(
        self, kind: Kind, namespace: str | None, version: str, *, labels: str | None = None
    ) -> AsyncIterator[WatchEvent]: ...


class Sink(Protocol):
    """Where objects go to."""

    def replace(self, kind: Kind, namespace: str | None, resources: list[Json], version: str) -> None: ...

    def put(self, kind: Kind, namespace: str | None, resource: Json) -> None: ...

    def remove(self, kind: Kind, namespace: str | None, resource: Json) -> None: ...

    def forget(self, kind: Kind, namespace: str | None) -> None: ...

    def note_served(self, kind: Kind, *, is_served: bool) -> None: ...


class Watcher:
    """Follows the operator's children of one kind, or all endpoints or surroundings, in one namespace or in all."""

    def __init__(
        self,
        kind: Kind,
        namespace: str | None,
        *,
        source: Source,
        sink: Sink,
        clock: Callable[[], float],
        random: Callable[[], float],
        backoff: Backoff,
    ) -> None:
        self.kind = kind
        self.namespace = namespace
        self._source = source
        self._sink = sink
        self._labels = None if kind == ENDPOINT or kind in SURROUNDING else CHILDREN_SELECTOR
        self._clock = clock
        self._random = random
        self._backoff = backoff
        self._num_failures = 0
        self._version: str | None = None
        self._last_progress = clock()
        self.synced = asyncio.Event()
        # By why a watch was begun again.
        self.restarts = dict.fromkeys(("ended", "failed", "gone"), 0)

    def silence_s(self) -> float:
        """Return for how long the loop has neither heard from the server nor tried to reach it."""
        return self._clock() - self._last_progress

    async def run(self) -> None:
        """Follow for ever; ends by cancellation only."""
        while True:
            self._last_progress = self._clock()
            try:
                await self._follow()
                self.restarts["ended"] += 1
            except ClusterError as error:
                if error.is_gone:
                    self._version = None
                if error.is_not_found and self.kind in OPTIONAL:
                    await self._await_kind()
                elif self.kind in SURROUNDING and self._is_out_of_reach(error):
                    await self._await_right()
                else:
                    self.restarts["gone" if error.is_gone else "failed"] += 1
                    await self._pause(error)

    async def _follow(self) -> None:
        if self._version is None:
            items, version = await self._source.fetch_list(self.kind, self.namespace, labels=self._labels)
            self._sink.note_served(self.kind, is_served=True)
            self._sink.replace(self.kind, self.namespace, items, version)
            self._version = version
            self.synced.set()
        stream = self._source.watch(self.kind, self.namespace, self._version, labels=self._labels)
        started = self._clock()
        async for event in stream:
            self._num_failures = 0
            self._last_progress = self._clock()
            self._take(event)
        if self._clock() - started < 1:
            # A server that ends every stream at once must not be asked without pause.
            raise ClusterError(f"watch of {self.kind} ended at once")

    def _take(self, event: WatchEvent) -> None:
        if event.type in {"ADDED", "MODIFIED"}:
            self._sink.put(self.kind, self.namespace, event.object)
        elif event.type == "DELETED":
            self._sink.remove(self.kind, self.namespace, event.object)
        self._version = event.object["metadata"]["resourceVersion"]

    async def _await_kind(self) -> None:
        """Take note that the cluster does not serve this kind, and look again later."""
        self._version = None
        self._sink.note_served(self.kind, is_served=False)
        self.synced.set()
        await asyncio.sleep(_UNSERVED_PERIOD_S)

    def _is_out_of_reach(self, error: ClusterError) -> bool:
        """Tell whether it may not be read for good; an API server that just started refuses everybody for seconds."""
        return error.is_not_found or (error.is_right_missing and self._num_failures >= _MAX_REFUSALS)

    async def _await_right(self) -> None:
        """Do without what may not be read, and look again later."""
        self._version = None
        self._sink.forget(self.kind, self.namespace)
        self.synced.set()
        await asyncio.sleep(_UNSERVED_PERIOD_S)

    async def _pause(self, error: ClusterError) -> None:
        self._num_failures += 1
        delay_s = max(error.retry_after_s or 0.0, self._backoff.delay_s(self._num_failures, self._random()))
        _LOG.warning(
            "watch interrupted",
            extra={"kind": str(self.kind), "namespace": self.namespace, "error": str(error), "delay_s": delay_s},
        )
        await asyncio.sleep(delay_s)
