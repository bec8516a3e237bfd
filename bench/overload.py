"""`make bench-overload`: what three times as many requests as there is room for do to those that are let in.

A live server with the small model, one start for each bound of the queue. Capacity first, from a closed loop that never
leaves a place empty; then open loops of a half, one and three times that, from four keys in equal parts; then one and a
half and three times, where one key sends ten times as much as each of three others. Who is refused comes back once,
when it is told to.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tokenizers import Tokenizer

from bench.knocks import MEAN_TOKENS, Crowd, Knock, summarise
from bench.load import build_prompts
from bench.prompts import PromptCounter
from bench.record import RESULTS, describe_circumstances
from bench.running import Running, started
from bench.servers import KEY, build_dedicate
from bench.soak import read_metrics, wait_until_idle
from dev.model.api import ensure_model

_MAX_NUM_SEQS = 32
_CLOSED_CONCURRENCY = 3 * _MAX_NUM_SEQS // 2
_HEAVY, _LIGHT = "heavy", ("light-1", "light-2", "light-3")
_HEAVY_FACTOR = 10
_SHARES = {"half": 0.5, "once": 1.0, "three times": 3.0}
_UNEVEN_SHARES = {"one and a half times, one heavy key": 1.5, "three times, one heavy key": 3.0}
"""A light key asks for 0.12 and 0.23 of the capacity; its part would be 0.25."""
_GENERATED = "dedicate_engine_generation_tokens_total"


class Overload:
    """The loads on one running server."""

    def __init__(self, running: Running, prompts: Iterator[str], *, seconds: float, seed: int) -> None:
        self._running = running
        self._crowd = Crowd(running.target, prompts, seed)
        self._seconds = seconds

    async def measure(self) -> dict[str, object]:
        """Gives capacity and what each load was like."""
        await self._crowd.run_closed(KEY, _CLOSED_CONCURRENCY, self._seconds / 4)  # warm, and the queue knows its pace
        capacity = await self._measure_capacity()
        _tell("capacity", capacity)
        loads: dict[str, object] = {}
        for name, share in _SHARES.items():
            rate = share * capacity["requests_per_s"] / (1 + len(_LIGHT))
            loads[name] = await self._measure_load(dict.fromkeys((_HEAVY, *_LIGHT), rate), capacity)
            _tell(name, loads[name])
        for name, share in _UNEVEN_SHARES.items():
            light = share * capacity["requests_per_s"] / (_HEAVY_FACTOR + len(_LIGHT))
            rates = {_HEAVY: _HEAVY_FACTOR * light, **dict.fromkeys(_LIGHT, light)}
            loads[name] = await self._measure_load(rates, capacity, by_key=True)
            _tell(name, loads[name])
        return {"capacity": capacity, "loads": loads}

    def _read_metrics(self) -> dict[str, float]:
        return read_metrics(self._running.management_url)

    async def _measure_capacity(self) -> dict[str, float]:
        """Throughput while no place is ever empty; the end of the closed loop, where they empty, is left out."""
        load = asyncio.create_task(self._crowd.run_closed(KEY, _CLOSED_CONCURRENCY, self._seconds / 2))
        await asyncio.sleep(self._seconds / 10)
        before, began = await asyncio.to_thread(self._read_metrics), time.perf_counter()
        await asyncio.sleep(self._seconds / 2 - self._seconds / 10)
        after, wall_s = await asyncio.to_thread(self._read_metrics), time.perf_counter() - began
        await load
        tokens_per_s = (after[_GENERATED] - before[_GENERATED]) / wall_s
        return {"requests_per_s": tokens_per_s / MEAN_TOKENS, "tokens_per_s": tokens_per_s}

    async def _measure_load(
        self, rates: Mapping[str, float], capacity: Mapping[str, float], *, by_key: bool = False
    ) -> dict[str, object]:
        load = asyncio.create_task(
            self._crowd.run_open(rates, self._seconds, patience_s=self._seconds / 2),
        )
        expected_s: list[float] = []
        before, began = await asyncio.to_thread(self._read_metrics), time.perf_counter()
        after, wall_s = before, 1.0
        while time.perf_counter() - began < self._seconds:
            await asyncio.sleep(1)
            after, wall_s = await asyncio.to_thread(self._read_metrics), time.perf_counter() - began
            expected_s.append(after.get("dedicate_expected_queue_time_seconds", 0.0))
        knocks = await load
        await asyncio.to_thread(wait_until_idle, self._running.management_url)
        tokens_per_s = (after[_GENERATED] - before[_GENERATED]) / wall_s
        result: dict[str, object] = {
            "offered_per_s": {key: round(rate, 2) for key, rate in rates.items()},
            "throughput_of_capacity": round(tokens_per_s / capacity["tokens_per_s"], 3),
            "expected_queue_s_max": round(max(expected_s), 2),
            **summarise(knocks, seconds=self._seconds),
        }
        if by_key:
            result["by_key"] = self._summarise_keys(knocks, rates)
        return result

    def _summarise_keys(self, knocks: list[Knock], rates: Mapping[str, float]) -> dict[str, object]:
        during = [knock for knock in knocks if knock.status == 200 and knock.at_s < self._seconds]
        return {
            key: {
                "share_of_admitted": round(sum(knock.key == key for knock in during) / max(len(during), 1), 3),
                **summarise([knock for knock in knocks if knock.key == key], seconds=self._seconds),
            }
            for key in rates
        }


def _tell(name: str, result: object) -> None:
    print(name, json.dumps(result), file=sys.stderr, flush=True)


def main() -> int:
    """Measures each bound of the queue on a server of its own, and keeps the figures."""
    arguments = _parse_arguments()
    model = ensure_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    counter = PromptCounter(model, tokenizer)
    about = describe_circumstances() | {"options": vars(arguments), "max_num_seqs": _MAX_NUM_SEQS}
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-overload-{arguments.quantization}.json"
    results: dict[str, object] = {}
    for index, bound in enumerate(arguments.max_queue_seconds):
        prompts = build_prompts(arguments.seed + index, sys.maxsize, counter.count)
        with tempfile.TemporaryDirectory(prefix="overload-") as scratch:
            keys = Path(scratch) / "several-keys"
            keys.mkdir()
            for key in (KEY, _HEAVY, *_LIGHT):
                (keys / key).write_text(key)
            server = build_dedicate(
                "overload",
                *("--quantization", arguments.quantization, "--api-keys-dir", str(keys)),
                *("--max-queue-seconds", f"{bound:g}", "--max-num-seqs", str(_MAX_NUM_SEQS)),
            )
            with started(server, model, Path(scratch), slots=_MAX_NUM_SEQS) as running:
                overload = Overload(running, prompts, seconds=arguments.seconds, seed=arguments.seed + index)
                results[f"at most {bound:g} s in the queue"] = asyncio.run(overload.measure())
        file.write_text(json.dumps({"about": about, "results": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))
    print(file)
    return 0


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.overload", description=__doc__)
    parser.add_argument("--quantization", choices=["int8", "none"], default="int8")
    parser.add_argument("--max-queue-seconds", type=float, nargs="+", default=[2.0, 15.0])
    parser.add_argument("--seconds", type=float, default=60.0, help="of each load")
    parser.add_argument("--seed", type=int, default=7)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
