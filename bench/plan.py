"""Who is measured when: a pure list of starts, decided before the first one.

Rounds go round the servers (A B C, A B C, ...), so that a machine whose speed drifts favours none of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import Load
from bench.servers import Server

_SEED_STRIDE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStart:
    """One start of a server and the loads that it gets, in order."""

    server: Server
    round: int
    slots: int
    loads: tuple[Load, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the comparison is asked to do."""

    concurrency: tuple[int, ...]
    rounds: int
    max_tokens: int
    arrivals_per_s: float | None
    """None leaves the open loop out."""
    num_arrivals: int


def plan_starts(servers: Sequence[Server], options: Options) -> list[PlannedStart]:
    """Gives every start in the order in which it is to be made.

    Each load has a seed of its own, so that no server finds the prompts of an earlier load in its cache, and the same
    one for all servers.
    """
    starts = []
    for round_index in range(options.rounds):
        for server in servers:
            if server.is_slow and round_index > 0:
                continue
            loads = _plan_loads(server, options, round_index)
            if not server.has_fixed_slots:
                slots = max(load.concurrency for load in loads)
                starts.append(PlannedStart(server=server, round=round_index, slots=slots, loads=tuple(loads)))
                continue
            starts += [
                PlannedStart(server=server, round=round_index, slots=load.concurrency, loads=(load,)) for load in loads
            ]
    return starts


def _plan_loads(server: Server, options: Options, round_index: int) -> list[Load]:
    limit = server.max_concurrency
    loads = [
        Load(
            concurrency=level,
            num_requests=_count_requests(server, level),
            max_tokens=options.max_tokens,
            seed=_SEED_STRIDE * round_index + level,
        )
        for level in options.concurrency
        if limit is None or level <= limit
    ]
    if options.arrivals_per_s is not None and round_index == 0 and not server.is_slow:
        loads.append(
            Load(
                concurrency=max(options.concurrency),
                num_requests=options.num_arrivals,
                max_tokens=options.max_tokens,
                seed=_SEED_STRIDE * round_index + _SEED_STRIDE // 2,
                arrivals_per_s=options.arrivals_per_s,
            )
        )
    return loads


def _count_requests(server: Server, concurrency: int) -> int:
    """Two waves, so that prefill and decode meet; one where that would take minutes."""
    return concurrency if server.is_slow and concurrency > 1 else max(3, 2 * concurrency)
