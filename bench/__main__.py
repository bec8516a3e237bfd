"""`make bench`: each server in turn, same weights, same prompts; one table with ratios, and a picture.

A server that cannot be installed, started or finished is reported with its reason; the record is written after every
run, so that nothing measured is lost.
"""

from __future__ import annotations

import argparse
import datetime as dt
import sys
import tempfile
from pathlib import Path

import httpx
import uvloop
from tokenizers import Tokenizer

from bench.load import Load, LoadError, build_prompts, run_load
from bench.plan import Options, PlannedStart, plan_starts
from bench.prompts import PromptCounter
from bench.record import Record, describe_circumstances, show_command
from bench.report import Run, summarise
from bench.running import Running, ServerFailedError, started
from bench.servers import SERVERS
from dev.environments import EnvironmentUnavailableError
from dev.model.api import MODEL_ID, ensure_model

_WARM_UP = Load(concurrency=2, num_requests=4, max_tokens=16, seed=999_999)
_FAILURES = (LoadError, ServerFailedError, EnvironmentUnavailableError, OSError, TimeoutError, httpx.HTTPError)


class Comparison:
    """Carries out planned starts, and keeps the record."""

    def __init__(self, model: Path, record: Record) -> None:
        self._model = model
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._counter = PromptCounter(model, self._tokenizer)
        self._record = record

    def carry_out(self, start: PlannedStart) -> None:
        """Measures one start; what fails goes into the record, and the server is left alone from then on."""
        name = start.server.name
        if name in self._record.failures:
            return
        try:
            with (
                tempfile.TemporaryDirectory(prefix="bench-") as scratch,
                started(start.server, self._model, Path(scratch), slots=start.slots) as running,
            ):
                self._record.commands[name] = show_command(running.command, Path(scratch))
                self._run(_WARM_UP, running)
                for load in start.loads:
                    self._measure(load, running, start)
        except _FAILURES as error:
            self._record.failures[name] = str(error) or type(error).__name__
            print(f"{name}: {self._record.failures[name]}", file=sys.stderr, flush=True)
        self._record.write()

    def _measure(self, load: Load, running: Running, start: PlannedStart) -> None:
        run = self._run(load, running, name=start.server.name, round_index=start.round)
        self._record.runs.append(run)
        self._record.write()
        loop = "closed" if load.arrivals_per_s is None else "open"
        print(
            f"{run.server} round {run.round} C={run.concurrency} {loop}: {run.tokens_per_s:.1f} tok/s, "
            f"TTFT p50 {run.ttft_p50_ms:.0f} ms, gap p50 {run.gap_p50_ms:.1f} ms",
            file=sys.stderr,
            flush=True,
        )

    def _run(self, load: Load, running: Running, *, name: str = "", round_index: int = 0) -> Run:
        prompts = list(build_prompts(load.seed, load.num_requests, self._counter.count))
        samples, wall_s = uvloop.run(run_load(running.target, load, prompts, self._tokenizer))
        return summarise(
            samples,
            wall_s=wall_s,
            server=name,
            round_index=round_index,
            concurrency=load.concurrency,
            arrivals_per_s=load.arrivals_per_s,
            first_token_s=running.first_token_s,
            pss_bytes=running.measure_pss_bytes(),
        )


def main() -> int:
    """Measures, prints the table, and leaves record, table and picture in bench/results/."""
    arguments = _parse_arguments()
    options = Options(
        concurrency=tuple(arguments.concurrency),
        rounds=arguments.rounds,
        max_tokens=arguments.max_tokens,
        arrivals_per_s=arguments.arrivals_per_s or None,
        num_arrivals=arguments.num_arrivals,
    )
    model = ensure_model()
    record = Record(
        stem=arguments.name or f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-cpu",
        about={
            **describe_circumstances(),
            "model": MODEL_ID,
            "load": f"prompts of 50 to 64 tokens, {options.max_tokens} new tokens, temperature 0.7, top_p 0.7, "
            "top_k 40, a seed for each request",
            "warm_up": f"{_WARM_UP.num_requests} requests of {_WARM_UP.max_tokens} tokens a start",
            "rounds": options.rounds,
            "seed": "1000 x round + concurrency",
        },
        servers=arguments.servers,
        references={name: SERVERS[name].reference for name in arguments.servers if not name.startswith("dedicate-")},
    )
    comparison = Comparison(model, record)
    for start in plan_starts([SERVERS[name] for name in arguments.servers], options):
        comparison.carry_out(start)
    record.write()
    print(record.table())
    print(f"\n{record.file} and the .md and .svg beside it")
    return 0 if record.runs else 1


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    default = [server.name for server in SERVERS.values() if server.is_by_default]
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=default)
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--arrivals-per-s", type=float, default=0.8, help="of the open loop; 0 leaves it out")
    parser.add_argument("--num-arrivals", type=int, default=24, help="requests of the open loop")
    parser.add_argument("--name", help="of the files in bench/results/; default: the date and `cpu`")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
