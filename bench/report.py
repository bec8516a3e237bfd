"""From runs to what a person reads: summaries, the table with ratios, and what the record says of the circumstances."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.load import Sample, percentile


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One load on one server. Throughput is over the whole run, prefill included; percentiles are over its requests."""

    server: str
    round: int
    concurrency: int
    arrivals_per_s: float | None
    """None for a closed loop."""
    num_requests: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float
    ttft_p99_ms: float
    gap_p50_ms: float
    gap_p99_ms: float
    """Between one piece of text and the next, over all requests."""
    num_tokens: int
    num_text_tokens: int
    first_token_s: float
    pss_bytes: int
    """After the run, all processes of the server."""


def summarise(
    samples: Sequence[Sample],
    *,
    wall_s: float,
    server: str,
    round_index: int,
    concurrency: int,
    arrivals_per_s: float | None,
    first_token_s: float,
    pss_bytes: int,
) -> Run:
    """Gives throughput and percentiles of one run."""
    ttfts = [1000 * sample.ttft_s for sample in samples]
    gaps = [1000 * gap for sample in samples for gap in sample.gaps_s] or [0.0]
    return Run(
        server=server,
        round=round_index,
        concurrency=concurrency,
        arrivals_per_s=arrivals_per_s,
        num_requests=len(samples),
        tokens_per_s=round(sum(sample.num_tokens for sample in samples) / wall_s, 2),
        ttft_p50_ms=round(percentile(ttfts, 0.5), 1),
        ttft_p90_ms=round(percentile(ttfts, 0.9), 1),
        ttft_p99_ms=round(percentile(ttfts, 0.99), 1),
        gap_p50_ms=round(percentile(gaps, 0.5), 2),
        gap_p99_ms=round(percentile(gaps, 0.99), 2),
        num_tokens=sum(sample.num_tokens for sample in samples),
        num_text_tokens=sum(sample.num_text_tokens for sample in samples),
        first_token_s=round(first_token_s, 2),
        pss_bytes=pss_bytes,
    )


def format_table(
    runs: Sequence[Run], failures: Mapping[str, str], servers: Sequence[str], references: Mapping[str, str]
) -> str:
    """Gives a Markdown table, one row a server: tok/s as median (min to max), and the ratio of its reference to it.

    A ratio above 1 says that the reference is faster. A server that could not be measured has its reason instead.
    """
    closed = [run for run in runs if run.arrivals_per_s is None]
    levels = sorted({run.concurrency for run in closed})
    has_open = len(closed) < len(runs)
    head = [
        "server",
        *(f"C={level} tok/s" for level in levels),
        *(f"C={level} TTFT p50 ms" for level in levels),
        *(["open loop TTFT p50 / p99 ms"] if has_open else []),
        "first token s",
        "memory GiB",
    ]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for name in servers:
        own = [run for run in runs if run.server == name]
        if not own:
            rows.append([name, failures.get(name, "not measured"), *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                name,
                *(_throughput_cell(closed, name, references.get(name, name), level) for level in levels),
                *(_ttft_cell(closed, name, level) for level in levels),
                *([_open_cell(runs, name)] if has_open else []),
                f"{statistics.median(run.first_token_s for run in own):.1f}",
                f"{max(run.pss_bytes for run in own) / 2**30:.2f}",
            ]
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    partly = [f"* {name}: {why}" for name, why in failures.items() if any(run.server == name for run in runs)]
    return "\n".join([*lines, *([""] if partly else []), *partly])


def _pick(runs: Sequence[Run], server: str, concurrency: int) -> list[Run]:
    return [run for run in runs if (run.server, run.concurrency) == (server, concurrency)]


def _throughput_cell(runs: Sequence[Run], name: str, reference: str, concurrency: int) -> str:
    speeds = [run.tokens_per_s for run in _pick(runs, name, concurrency)]
    if not speeds:
        return ""
    cell = format_spread(speeds, lambda value: f"{value:.1f}")
    ours = [run.tokens_per_s for run in _pick(runs, reference, concurrency)]
    if name == reference or not ours:
        return cell
    return f"{cell}, x{statistics.median(ours) / statistics.median(speeds):.2f}"


def _ttft_cell(runs: Sequence[Run], name: str, concurrency: int) -> str:
    values = [run.ttft_p50_ms for run in _pick(runs, name, concurrency)]
    return format_spread(values, lambda value: f"{value:.0f}") if values else ""


def _open_cell(runs: Sequence[Run], name: str) -> str:
    own = [run for run in runs if run.server == name and run.arrivals_per_s is not None]
    if not own:
        return ""
    p50 = statistics.median(run.ttft_p50_ms for run in own)
    p99 = statistics.median(run.ttft_p99_ms for run in own)
    return f"{p50:.0f} / {p99:.0f}"


def format_spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    """Gives median (minimum to maximum); the value alone where there is one."""
    middle = show(statistics.median(values))
    return middle if len(values) == 1 else f"{middle} ({show(min(values))} to {show(max(values))})"


def to_json(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Gives the runs as they go into the record."""
    return [asdict(run) for run in runs]
