"""The running operator: watches fill the store, changes fill the queue, and the leader's workers reconcile.

Endpoints and children arrive from watches alike; those of children select by label on the server. No work is done
before each has been listed once, because who owns a path can be told only with all endpoints known.

All of it goes on in a standby, too, but for the workers: it takes over with a store that is warm.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from dedicate_operator.cluster import Cluster
from dedicate_operator.downloads import Downloads, ProgressPage
from dedicate_operator.election import Election
from dedicate_operator.errors import ClusterError, NotLeaderError
from dedicate_operator.fence import Fence, read_clock
from dedicate_operator.identity import Key
from dedicate_operator.kinds import ENDPOINT, GATEWAY, INGRESS_CLASS, SURROUNDING, WATCHED, Json, Kind
from dedicate_operator.leadership import RENEW_PERIOD_S, Candidate
from dedicate_operator.metrics import Metrics, Result, Snapshot
from dedicate_operator.reconcile import Reconciler
from dedicate_operator.settings import Settings
from dedicate_operator.store import Store, key_of, read_ready
from dedicate_operator.surroundings import (
    Surroundings,
    with_listed,
    with_resource,
    without_kind,
    without_resource,
)
from dedicate_operator.watch import Watcher
from dedicate_operator.workqueue import Backoff, WorkQueue

_LOG = logging.getLogger(__name__)

# Arbitrary; more than the API server works on at once would only wait there.
_NUM_WORKERS = 16
_RECONCILE_DEADLINE_S = 60.0
# Longer than any deadline of ours: what lasts longer hangs.
_HANG_S = 180.0
# After an interruption the API server is asked again soon: a storm's end must be noticed within 10 s.
_BACKOFF = Backoff(base_s=0.2, limit_s=5.0)


class Controller:
    """Owns the store, the queue and every task; used from one event loop."""

    def __init__(self, settings: Settings, cluster: Cluster, fence: Fence, metrics: Metrics, *, identity: str) -> None:
        self._cluster = cluster
        self._metrics = metrics
        self._namespaces: tuple[str | None, ...] = settings.watch_namespaces or (None,)
        self._store = Store(settings.defaults)
        self._queue: WorkQueue[Key] = WorkQueue(clock=time.monotonic, random=random.random, backoff=_BACKOFF)
        self._progress = ProgressPage()
        self._downloads = Downloads(self._progress, notify=self._queue.add, clock=time.monotonic)
        self._reconciler = Reconciler(
            cluster,
            self._store,
            settings.defaults,
            downloads=self._downloads,
            now=lambda: datetime.now(UTC),
            has_backlog=lambda: self._queue.num_ready() > _NUM_WORKERS,
        )
        self._watchers = [
            Watcher(
                kind,
                namespace,
                source=cluster,
                sink=self,
                clock=time.monotonic,
                random=random.random,
                backoff=_BACKOFF,
            )
            for kind, namespace in _list_watches(self._namespaces)
        ]
        lease = Key(settings.lease_namespace or cluster.namespace, settings.lease_name)
        self._election = Election(
            cluster,
            fence,
            Candidate(identity, lease),
            lease,
            lead=self._lead,
            clock=read_clock,
            now=lambda: datetime.now(UTC),
            random=random.random,
        )
        self._tasks: list[asyncio.Task[None]] = []
        self._is_synced = False
        self._working_since: float | None = None
        metrics.watch(self._read_state)

    def start(self) -> None:
        for watcher in self._watchers:
            self._spawn(watcher.run(), f"watch {watcher.kind} in {watcher.namespace or 'all namespaces'}")
        self._spawn(self._run(), "election")

    async def stop(self) -> None:
        """End every task, hand over to a standby, and close every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._election.resign()
        await self._progress.close()
        await self._cluster.close()

    def find_obstacle(self) -> str | None:
        """Return what keeps this process from being of use: from leading, or from taking over from who leads."""
        if not self._is_synced:
            return "not everything is listed yet"
        return self.find_fault() or self._election.find_obstacle()

    def describe_role(self) -> str:
        """Return whether this process leads, and else who does."""
        return "leading" if self._election.is_leading else f"standing by for {self._election.holder}"

    def find_fault(self) -> str | None:
        """Return what has stopped making progress, None while all goes on.

        An API server that cannot be reached is no fault of this process: trying again is progress.
        """
        for task in self._tasks:
            if task.done():
                return f"task {task.get_name()!r} has ended"
        for watcher in self._watchers:
            if watcher.silence_s() > _HANG_S:
                return f"watch of {watcher.kind} hangs"
        if self._is_synced and self._election.silence_s() > _HANG_S:
            return "the election hangs"
        if self._queue.longest_work_s() > _HANG_S:
            return "a reconcile hangs"
        return None

    def replace(self, kind: Kind, namespace: str | None, resources: list[Json], version: str) -> None:
        if kind == ENDPOINT:
            self._enqueue(self._store.replace_endpoints(namespace, resources, version))
        elif kind in SURROUNDING:
            self._note(with_listed(self._store.surroundings, kind, namespace, resources))
        else:
            self._enqueue(self._store.replace_children(kind, namespace, resources, version))

    def put(self, kind: Kind, namespace: str | None, resource: Json) -> None:
        if kind == ENDPOINT:
            self._enqueue(self._store.put_endpoint(resource))
        elif kind in SURROUNDING:
            self._note(with_resource(self._store.surroundings, kind, namespace, resource))
        else:
            self._enqueue(self._store.put_child(kind, resource))

    def remove(self, kind: Kind, namespace: str | None, resource: Json) -> None:
        if kind in SURROUNDING:
            self._note(without_resource(self._store.surroundings, kind, namespace, resource))
            return
        self._store.bury(resource)
        if kind == ENDPOINT:
            self._enqueue(self._store.remove_endpoint(key_of(resource), resource["metadata"]["uid"]))
        else:
            self._enqueue(self._store.remove_child(kind, resource))

    def forget(self, kind: Kind, namespace: str | None) -> None:
        self._note(without_kind(self._store.surroundings, kind, namespace))

    def note_served(self, kind: Kind, *, is_served: bool) -> None:
        self._enqueue(self._store.note_served(kind, is_served=is_served))

    def _note(self, surroundings: Surroundings) -> None:
        self._enqueue(self._store.note_surroundings(surroundings))

    def _enqueue(self, keys: Iterable[Key]) -> None:
        for key in sorted(keys):
            self._queue.add(key)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        task.add_done_callback(_log_end)
        self._tasks.append(task)

    async def _run(self) -> None:
        for watcher in self._watchers:
            await watcher.synced.wait()
        self._is_synced = True
        _LOG.info("synced", extra={"endpoints": len(self._store.keys())})
        await self._election.run()

    async def _lead(self) -> None:
        """Work on every endpoint once, then on whatever changes, until cancelled."""
        # What the leader before has acted on may not have reached the watches yet; no older specification may return.
        await self.resync()
        self._enqueue(self._store.keys())
        self._working_since = time.monotonic()
        try:
            async with asyncio.TaskGroup() as workers:
                for index in range(_NUM_WORKERS):
                    workers.create_task(self._work(), name=f"worker {index}")
                workers.create_task(self._downloads.run(), name="downloads")
        finally:
            self._working_since = None

    async def resync(self) -> None:
        """List every endpoint, as often as it takes, and work on what differs from what is known."""
        for namespace in self._namespaces:
            num_failures = 0
            while True:
                try:
                    items, version = await self._cluster.fetch_list(ENDPOINT, namespace)
                    break
                except ClusterError as error:
                    num_failures += 1
                    delay_s = _BACKOFF.delay_s(num_failures, random.random())  # noqa: S311 - jitter
                    _LOG.warning("endpoints not listed", extra={"error": str(error), "delay_s": delay_s})
                    await asyncio.sleep(delay_s)
            self._enqueue(self._store.replace_endpoints(namespace, items, version))

    async def _work(self) -> None:
        while True:
            key = await self._queue.get()
            started, result = time.monotonic(), Result.ABANDONED
            try:
                async with asyncio.timeout(_RECONCILE_DEADLINE_S):
                    requeue_s = await self._reconciler.reconcile(key)
            except NotLeaderError:
                # The next leader begins with every key; if that is this process, without a pause, this one is due.
                self._queue.add_after(key, RENEW_PERIOD_S)
            except (ClusterError, TimeoutError) as error:
                # That somebody else was quicker is in the order of things.
                is_overtaken = isinstance(error, ClusterError) and error.is_conflict
                result = Result.OVERTAKEN if is_overtaken else Result.FAILED
                self._metrics.observe_error(error)
                at_least_s = (error.retry_after_s if isinstance(error, ClusterError) else None) or 0.0
                delay_s = self._queue.retry(key, at_least_s)
                _LOG.log(
                    logging.INFO if is_overtaken else logging.WARNING,
                    "reconcile failed",
                    extra={"endpoint": str(key), "error": str(error) or "deadline exceeded", "retry_in_s": delay_s},
                )
            except Exception as error:  # noqa: BLE001 - the boundary of one endpoint's pass; logged and retried
                result = Result.CRASHED
                self._metrics.observe_error(error)
                # A fault of ours in one endpoint's pass must not stop the others'.
                delay_s = self._queue.retry(key)
                _LOG.exception("reconcile crashed", extra={"endpoint": str(key), "retry_in_s": delay_s})
            else:
                result = Result.SUCCEEDED
                self._queue.forget_failures(key)
                if requeue_s is not None:
                    self._queue.add_after(key, requeue_s)
            finally:
                self._queue.done(key)
                self._metrics.observe_reconcile(result, time.monotonic() - started)

    def _read_state(self) -> Snapshot:
        restarts: dict[tuple[str, str], int] = {}
        for watcher in self._watchers:
            for reason, count in watcher.restarts.items():
                labels = (watcher.kind.plural, reason)
                restarts[labels] = restarts.get(labels, 0) + count
        return Snapshot(
            is_leading=self._election.is_leading,
            queue=self._queue.read_state(self._working_since),
            endpoints=[read_ready(key, self._store.record(key)) for key in sorted(self._store.keys())],
            watch_restarts=restarts,
        )


def _list_watches(namespaces: Iterable[str | None]) -> list[tuple[Kind, str | None]]:
    """Return what is watched where; a Role cannot grant the reading of IngressClasses, which are in no namespace."""
    everywhere = [(kind, namespace) for kind in (ENDPOINT, *WATCHED, GATEWAY) for namespace in namespaces]
    return everywhere + ([(INGRESS_CLASS, None)] if None in namespaces else [])


def _log_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        _LOG.critical("task ended", extra={"task": task.get_name()}, exc_info=task.exception())
