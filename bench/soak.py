"""`make soak`: half an hour of requests of every kind against a live server, ended early by a number of requests.

Passes if at the end every request has had an answer (or was hung up on by its client), all blocks of the KV cache are
free, and the memory of both processes is flat. Exit code 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import h11
import httpx
import uvloop

from bench.load import percentile
from bench.record import RESULTS, describe_circumstances
from bench.running import Running, started
from bench.servers import build_dedicate
from bench.soak_requests import SoakDraw, SoakRequest, judge
from bench.stream import parse, record
from dev.model.api import ensure_model

# Small on purpose: sequences are preempted, prefixes evicted and requests refused every few seconds.
_LIMITS = {
    "--max-num-seqs": "16",
    "--max-queued-requests": "16",
    "--kv-cache-tokens": "4096",
    "--max-model-len": "2048",
}
_NUM_WORKERS = 12
_BURST_SIZE = 40
_BURST_EVERY_S = 20
_SAMPLE_EVERY_S = 5
_REQUEST_TIMEOUT_S = 120
_IDLE_TIMEOUT_S = 30
_WARM_SHARE = 0.2
"""Part of the samples before memory counts as warm: every path has run and the whole cache has been written once."""
MAX_GROWTH_BYTES = 64 * 2**20
"""Allowed between the median of the first warm fifth and of the last one: allocators keep some of what they got."""


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    answered: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    hung_up: int = 0
    bad: int = 0
    faults: list[str] = field(default_factory=list)
    anonymous_bytes: list[int] = field(default_factory=list)

    @property
    def num_requests(self) -> int:
        return self.answered.total() + self.refused + self.hung_up + self.bad + len(self.faults)


class Soak:
    """A server under mixed load until a deadline or a number of requests."""

    def __init__(self, running: Running, *, seed: int, seconds: float, max_requests: int) -> None:
        self._running = running
        self._draw = SoakDraw(running.target.model, seed=seed)
        self._ends_at = time.monotonic() + seconds
        self._max_requests = max_requests
        self._num_sent = 0
        self.tally = Tally()

    async def run(self) -> None:
        """Sends until the end, then waits for what is still open."""
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(self._work()) for _ in range(_NUM_WORKERS)]
            others = [group.create_task(self._burst()), group.create_task(self._watch_memory())]
            await asyncio.wait(workers)
            for task in others:
                task.cancel()

    async def _work(self) -> None:
        while (request := self._next()) is not None:
            await self._send(request)

    async def _burst(self) -> None:
        """Sends more at once than the queue holds, now and then."""
        while True:
            await asyncio.sleep(_BURST_EVERY_S)
            requests = [request for _ in range(_BURST_SIZE) if (request := self._next()) is not None]
            await asyncio.gather(*(self._send(request) for request in requests))

    async def _watch_memory(self) -> None:
        while True:
            self.tally.anonymous_bytes.append(await asyncio.to_thread(self._running.measure_anonymous_bytes))
            await asyncio.sleep(_SAMPLE_EVERY_S)

    def _next(self) -> SoakRequest | None:
        if self._num_sent >= self._max_requests or time.monotonic() >= self._ends_at:
            return None
        self._num_sent += 1
        return self._draw.next()

    async def _send(self, request: SoakRequest) -> None:
        address = self._running.target.address
        try:
            recording = await record(
                address,
                request.encode(address),
                timeout_s=_REQUEST_TIMEOUT_S,
                quit_after_bytes=request.quit_after_bytes,
            )
            answer = parse(recording)
        except (OSError, TimeoutError, h11.RemoteProtocolError, ValueError) as error:
            self.tally.faults.append(f"{request.kind}: {type(error).__name__} {error}")
            return
        if request.quit_after_bytes is not None and not answer.is_whole and answer.status == 200:
            self.tally.hung_up += 1
        elif fault := judge(request, answer):
            self.tally.faults.append(f"{request.kind}: {fault}")
        elif answer.status == 429:
            self.tally.refused += 1
        elif answer.status != 200:
            self.tally.bad += 1
        else:
            self.tally.answered[request.kind] += 1


def read_metrics(management_url: str) -> dict[str, float]:
    """Gives the samples without labels of the server's metrics."""
    text = httpx.get(f"{management_url}/metrics", timeout=10).text
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line for line in lines if len(line) == 2) if "{" not in name}


def wait_until_idle(management_url: str) -> dict[str, float]:
    """Gives the metrics once nothing runs or waits; those of the last look if that does not happen in time."""
    deadline = time.monotonic() + _IDLE_TIMEOUT_S
    while True:
        metrics = read_metrics(management_url)
        busy = metrics["dedicate_num_requests_running"] + metrics["dedicate_num_requests_waiting"]
        if busy == 0 or time.monotonic() > deadline:
            return metrics
        time.sleep(0.2)


def find_faults(tally: Tally, metrics: dict[str, float]) -> list[str]:
    """Says in sentences what keeps the soak from having passed."""
    faults = [f"{len(tally.faults)} requests failed, the first: {tally.faults[0]}"] if tally.faults else []
    gauges = ("dedicate_num_requests_running", "dedicate_num_requests_waiting")
    faults += [f"{name} is {metrics[name]:.0f} at the end" for name in gauges if metrics[name] != 0]
    free, blocks = metrics["dedicate_kv_cache_free_blocks"], metrics["dedicate_kv_cache_blocks"]
    if free != blocks:
        faults.append(f"{blocks - free:.0f} of {blocks:.0f} blocks of the KV cache are not free")
    start, _, end = memory_course(tally.anonymous_bytes)
    if end - start > MAX_GROWTH_BYTES:
        faults.append(f"memory grew by {(end - start) / 2**20:.0f} MiB")
    return faults


def memory_course(anonymous_bytes: list[int]) -> tuple[int, int, int]:
    """Gives the median of the first warm fifth of the samples, of all warm ones, and of the last fifth."""
    warm = anonymous_bytes[int(len(anonymous_bytes) * _WARM_SHARE) :] or [0]
    fifth = max(len(warm) // 5, 1)
    first, middle, last = (int(percentile(part, 0.5)) for part in (warm[:fifth], warm, warm[-fifth:]))
    return first, middle, last


def main() -> int:
    """Runs the soak and prints and keeps its figures."""
    arguments = _parse_arguments()
    options = [part for option in _LIMITS.items() for part in option]
    server = build_dedicate("soak", *options, "--quantization", arguments.quantization)
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as scratch,
        started(server, ensure_model(), Path(scratch), slots=_NUM_WORKERS) as running,
    ):
        soak = Soak(running, seed=arguments.seed, seconds=arguments.seconds, max_requests=arguments.requests)
        began = time.monotonic()
        uvloop.run(soak.run())
        wall_s = time.monotonic() - began
        metrics = wait_until_idle(running.management_url)
    faults = find_faults(soak.tally, metrics)
    summary = summarise_soak(soak.tally, metrics, wall_s=wall_s) | {"faults": faults}
    about = describe_circumstances() | {"options": vars(arguments), "limits": _LIMITS}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-soak-{arguments.quantization}.json"
    file.write_text(json.dumps({"about": about, **summary}, indent=1) + "\n")
    print(json.dumps(summary, indent=1))
    print(f"{'FAILED' if faults else 'passed'}; {file}")
    return 1 if faults else 0


def summarise_soak(tally: Tally, metrics: dict[str, float], *, wall_s: float) -> dict[str, object]:
    """Gives the figures that a report quotes."""
    start, middle, end = memory_course(tally.anonymous_bytes)
    names = ("engine_generation_tokens_total", "num_preemptions_total", "prefix_cache_hits_total", "kv_cache_blocks")
    return {
        "seconds": round(wall_s, 1),
        "requests": tally.num_requests,
        "answered": dict(sorted(tally.answered.items())),
        "hung_up_by_client": tally.hung_up,
        "refused_429": tally.refused,
        "bad_requests_refused": tally.bad,
        "failed": len(tally.faults),
        "memory_mib": {
            "start": start >> 20,
            "middle": middle >> 20,
            "end": end >> 20,
            "allowed": MAX_GROWTH_BYTES >> 20,
        },
        **{name: metrics.get(f"dedicate_{name}") for name in names},
        "kv_cache_free_blocks": metrics["dedicate_kv_cache_free_blocks"],
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--requests", type=int, default=50_000, help="ends the soak before its time")
    parser.add_argument("--quantization", choices=["none", "int8"], default="none")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
