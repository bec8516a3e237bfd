"""`make bench`: each server in turn, same weights, same prompts, one table with ratios.

Rounds go round the servers (A B C, A B C, ...), so that a machine whose speed drifts does not favour one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bench.load import Load, Sample, percentile, run_load
from bench.servers import SERVERS, started
from dev.model.api import MODEL_ID, ensure_model

_RESULTS = Path(__file__).parent / "results"
_WARM_UP = Load(concurrency=1, num_requests=2, max_tokens=16, seed=0)


def main() -> None:
    """Measure, print the table, write the record to bench/results/."""
    options = _parse_arguments()
    model = ensure_model()
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    runs: list[dict[str, Any]] = []
    for round_index in range(options.rounds):
        for name in options.servers:
            with (
                tempfile.TemporaryDirectory() as scratch,
                started(SERVERS[name], model, Path(scratch)) as (
                    target,
                    start_s,
                ),
            ):
                asyncio.run(run_load(target, _WARM_UP, tokenizer))
                for concurrency in options.concurrency:
                    load = Load(
                        concurrency=concurrency,
                        num_requests=max(4, 2 * concurrency),
                        max_tokens=options.max_tokens,
                        seed=round_index,
                    )
                    samples, wall_s = asyncio.run(run_load(target, load, tokenizer))
                    runs.append(
                        {
                            "server": name,
                            "round": round_index,
                            "concurrency": concurrency,
                            "start_s": round(start_s, 2),
                            **summarise(samples, wall_s),
                        }
                    )
                    print(runs[-1], file=sys.stderr, flush=True)
    record = {"about": _about(options), "runs": runs}
    _RESULTS.mkdir(exist_ok=True)
    file = _RESULTS / f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-cpu.json"
    file.write_text(json.dumps(record, indent=1) + "\n")
    print(format_table(runs, options.servers, options.concurrency))
    print(f"\n{file}")


def summarise(samples: list[Sample], wall_s: float) -> dict[str, float]:
    """Throughput over the whole run and percentiles over its requests."""
    ttfts = [sample.ttft_s for sample in samples]
    gaps = [(s.total_s - s.ttft_s) / (s.num_tokens - 1) for s in samples if s.num_tokens > 1]
    return {
        "tokens_per_s": round(sum(sample.num_tokens for sample in samples) / wall_s, 2),
        "ttft_p50_ms": round(1000 * percentile(ttfts, 0.5), 1),
        "ttft_p99_ms": round(1000 * percentile(ttfts, 0.99), 1),
        "inter_token_p50_ms": round(1000 * percentile(gaps, 0.5), 1),
        "num_requests": len(samples),
    }


def format_table(runs: list[dict[str, Any]], servers: list[str], concurrency: list[int]) -> str:
    """One row a server, one column a concurrency: median tok/s (min to max), ratio to the first server, TTFT."""
    head = ["server", *(f"C={c} tok/s" for c in concurrency), *(f"C={c} TTFT p50 ms" for c in concurrency)]
    rows = [head, ["---"] * len(head)]
    for name in servers:
        throughput, ttft = [], []
        for c in concurrency:
            own, first = ([r for r in runs if (r["server"], r["concurrency"]) == (n, c)] for n in (name, servers[0]))
            speeds = [run["tokens_per_s"] for run in own]
            ratio = statistics.median(speeds) / statistics.median(run["tokens_per_s"] for run in first)
            throughput.append(f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f}), x{ratio:.2f}")
            ttft.append(f"{statistics.median(run['ttft_p50_ms'] for run in own):.0f}")
        rows.append([name, *throughput, *ttft])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _about(options: argparse.Namespace) -> dict[str, Any]:
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    versions = {name: importlib.metadata.version(name) for name in ("dedicate", "torch", "transformers", "tokenizers")}
    return {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        "model": MODEL_ID,
        "weights": "float32",
        "cpu": cpu,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "rounds": options.rounds,
        "max_tokens": options.max_tokens,
        "sampling": "temperature 0.7, top_p 0.7, a seed for each request",
        "warm_up": f"{_WARM_UP.num_requests} requests of {_WARM_UP.max_tokens} tokens a start",
    }


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--max-tokens", type=int, default=128)
    return parser.parse_args()


if __name__ == "__main__":
    main()
