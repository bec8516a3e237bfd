"""Takes part in the election: keeps the Lease while this process leads, and watches it while another does.

What is done when is `leadership`'s; here are the requests, the clock, and the work that is done while leading. Losing
the lead ends that work and not the process: its store stays warm, and it stands by for the next turn.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Protocol

from dedicate_operator.errors import ClusterError
from dedicate_operator.fence import Fence
from dedicate_operator.identity import Key
from dedicate_operator.kinds import LEASE, Json, Kind
from dedicate_operator.leadership import NOBODY, Candidate

_LOG = logging.getLogger(__name__)

# A connection that hangs leaves time for another try within the renewal's deadline.
_TURN_DEADLINE_S = 4.0
# Together with a look's period, within the 3 s of a graceful hand-over.
_DRAIN_S = 1.5


class LeaseApi(Protocol):
    """Where the Lease is."""

    async def fetch(self, kind: Kind, key: Key) -> Json | None: ...

    async def replace_lease(self, lease: Json) -> Json: ...


class Election:
    """One process's part in it; used from one event loop.

    Args:
        lead: what a leader does, until it is cancelled.
        clock: must go on while the machine sleeps; the fence's own.
        now: the wall clock, for people who read the Lease.
        random: a number from 0 to 1.
    """

    def __init__(
        self,
        api: LeaseApi,
        fence: Fence,
        candidate: Candidate,
        key: Key,
        *,
        lead: Callable[[], Coroutine[Any, Any, None]],
        clock: Callable[[], float],
        now: Callable[[], datetime],
        random: Callable[[], float],
    ) -> None:
        self._api = api
        self._fence = fence
        self._candidate = candidate
        self._key = key
        self._lead = lead
        self._clock = clock
        self._now = now
        self._random = random
        self._term: asyncio.Task[None] | None = None
        self._told_holder: str | None = None
        self._complaint: str | None = None
        self._last_turn = clock()

    async def run(self) -> None:
        """Take part for ever; ends by cancellation only, and `resign` is due then."""
        while True:
            await self.turn()
            await asyncio.sleep(self._candidate.pause_s(self._clock(), self._random()))

    async def turn(self) -> None:
        """Look, claim what may be claimed, and begin or end the leader's work accordingly."""
        self._last_turn = self._clock()
        try:
            async with asyncio.timeout(_TURN_DEADLINE_S):
                await self._look_and_claim()
        except (ClusterError, TimeoutError) as error:
            self._candidate.doubt()
            self._complain(error)
        else:
            self._complaint = None
        await self._follow()

    async def resign(self) -> None:
        """Write no more; release the Lease, if no write can take effect any more, so that another may lead at once."""
        is_settled = await self._fence.drain(_DRAIN_S)
        await self._end_term()
        self._candidate.resign()
        if not self._candidate.is_holder:
            return
        if not is_settled:
            _LOG.warning("a write was not answered: the Lease is left to run out", extra={"lease": str(self._key)})
            return
        try:
            async with asyncio.timeout(_TURN_DEADLINE_S):
                await self._release()
        except (ClusterError, TimeoutError) as error:
            _LOG.warning("the Lease is not released", extra={"lease": str(self._key), "error": _describe(error)})

    async def _release(self) -> None:
        """Release the Lease if it is ours; a renewal that was cut off may come between once."""
        for _ in range(2):
            self._candidate.see(await self._api.fetch(LEASE, self._key), self._clock())
            release = self._candidate.plan_release(self._now())
            if release is None:
                return
            try:
                await self._api.replace_lease(release)
            except ClusterError as error:
                if not error.is_conflict:
                    raise
            else:
                _LOG.info("released the Lease", extra={"lease": str(self._key)})
                return

    @property
    def is_leading(self) -> bool:
        return self._candidate.leads(self._clock())

    @property
    def holder(self) -> str:
        """Who holds the Lease, as last seen; empty if nobody does."""
        return (self._candidate.sighting.holder if self._candidate.sighting else None) or ""

    def find_obstacle(self) -> str | None:
        """Return why nobody leads, as far as this process can see; None while somebody does."""
        sighting, now = self._candidate.sighting, self._clock()
        is_held = sighting is not None and self.holder not in {"", NOBODY} and now < sighting.free_at
        if self._candidate.leads(now) or is_held:
            return None
        return self._complaint or f"nobody leads: Lease {self._key} is new, has run out, or was not read yet"

    def silence_s(self) -> float:
        """Return for how long the loop has not begun a turn."""
        return self._clock() - self._last_turn

    async def _look_and_claim(self) -> None:
        candidate = self._candidate
        if candidate.must_look:
            lease = await self._api.fetch(LEASE, self._key)
            candidate.see(lease, self._clock())
            self._fence.move(candidate.writes_until)
            if self._term is not None and not self.is_leading:
                # Somebody else may have led meanwhile: what was begun before ends before anything is claimed.
                return
        sent_at = self._clock()
        write = candidate.plan_write(sent_at, self._now())
        if write is not None:
            lease = await self._api.replace_lease(write)
            candidate.take_note(lease, sent_at, self._clock())
            self._fence.move(candidate.writes_until)

    async def _follow(self) -> None:
        if self._term is not None and self._term.done():
            # A fault of ours. To end here lets the Lease run out, and another take over.
            raise RuntimeError("the leader's work has ended") from self._term.exception()
        if self.is_leading and self._term is None:
            self._tell("leading")
            self._term = asyncio.create_task(self._lead(), name="leader's work")
        elif not self.is_leading:
            if self._term is not None:
                _LOG.warning("no longer leading", extra={"lease": str(self._key), "error": self._complaint})
                await self._end_term()
            if self.holder not in {"", self._told_holder} and not self._candidate.is_holder:
                self._tell("standing by")

    def _tell(self, role: str) -> None:
        self._told_holder = self.holder
        transitions = self._candidate.num_transitions
        _LOG.info(role, extra={"lease": str(self._key), "holder": self.holder, "transitions": transitions})

    async def _end_term(self) -> None:
        if self._term is not None:
            self._term.cancel()
            await asyncio.gather(self._term, return_exceptions=True)
            self._term = None

    def _complain(self, error: ClusterError | TimeoutError) -> None:
        """Log what is new; that another was quicker is nothing to complain of."""
        if isinstance(error, ClusterError) and error.is_conflict:
            return
        complaint = f"no access to Lease {self._key}: {_describe(error)}"
        if isinstance(error, ClusterError) and error.is_right_missing:
            complaint += "; grant what docs/rbac.md lists for it"
        if complaint != self._complaint:
            self._complaint = complaint
            _LOG.warning("cannot take part in the election", extra={"error": complaint})


def _describe(error: ClusterError | TimeoutError) -> str:
    return str(error) or "no answer in time"
