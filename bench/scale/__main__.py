"""`python -m bench.scale`: what the operator takes for a fleet, beside bare server-side applies of the same objects."""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from bench.machine import describe_cpu
from bench.scale.measure import AT_ONCE, measure_bare, measure_operator
from bench.scale.plan import Fleet
from bench.scale.report import draw, format_table
from dev.paths import REPOSITORY

_RESULTS = Path(__file__).parents[1] / "results"
_SIZES = (100, 300, 1000, 3000, 10000)


def main() -> None:
    """Measure each size, writing the record after each, so that a size that fails takes nothing with it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=_SIZES, help="how many endpoints")
    parser.add_argument("--rounds", type=int, default=1, help="how often the two sides of each size are measured")
    parser.add_argument("--nodes", action="store_true", help="nodes by kwok make the pods ready")
    parser.add_argument("--steady-seconds", type=float, default=60.0, help="how long a settled fleet is watched")
    parser.add_argument("--stem", default=f"{dt.datetime.now(dt.UTC):%Y-%m-%d}-operator", help="the record's name")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    about = _describe(options.steady_seconds)
    runs: list[dict[str, Any]] = []
    for size in options.sizes:
        for _ in range(options.rounds):
            runs.append(asyncio.run(_measure(Fleet(size, has_nodes=options.nodes), options.steady_seconds)))
            print(format_table(runs))
            if not options.no_record:
                _write(options.stem, about, runs)


async def _measure(fleet: Fleet, steady_s: float) -> dict[str, Any]:
    load, _, _ = os.getloadavg()
    bare = await measure_bare(fleet)
    ours = await measure_operator(fleet, steady_s=steady_s)
    return {
        "endpoints": fleet.size,
        "has_nodes": fleet.has_nodes,
        "load_before": round(load, 2),
        "bare": bare,
        "operator": ours,
    }


def _describe(steady_s: float) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "commit": commit,
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": describe_cpu(),
        "python": platform.python_version(),
        "requests_at_once": AT_ONCE,
        "steady_seconds": steady_s,
    }


def _write(stem: str, about: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / f"{stem}.json").write_text(json.dumps({"about": about, "runs": runs}, indent=1) + "\n")
    (_RESULTS / f"{stem}.md").write_text(format_table(runs) + "\n")
    (_RESULTS / f"{stem}.svg").write_text(draw(runs))


if __name__ == "__main__":
    main()
