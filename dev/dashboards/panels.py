"""What a dashboard is made of, and how its expressions are spelled."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Query:
    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel; `unit` is Grafana's name for it."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    maximum: float | None = None


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


def build_rate(metric: str, labels: str, by: str) -> str:
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def build_quantiles(metric: str, labels: str) -> tuple[Query, ...]:
    """Return the median, the 95th and the 99th percentile of a histogram."""
    buckets = build_rate(f"{metric}_bucket", labels, "le")
    return tuple(
        Query(f"histogram_quantile({quantile}, {buckets})", name)
        for quantile, name in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
    )


def one(expression: str, legend: str) -> tuple[Query, ...]:
    return (Query(expression, legend),)
