"""What is read of a record: a table, and the picture of what grows with the fleet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

Run = dict[str, Any]

_MIB = 2**20
_WIDTH, _HEIGHT, _TOP, _PANEL_HEIGHT, _PANEL_WIDTH = 960, 380, 60, 240, 240
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 14px; font-weight: 600; }
  .axis { stroke: #6e7781; } .grid { stroke: #d0d7de; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .grid { stroke: #30363d; } .axis { stroke: #8b949e; } }
"""
_COLUMNS = (
    "endpoints",
    "objects",
    "bare s",
    "operator s",
    "ratio",
    "bare CPU s",
    "operator CPU s",
    "ratio",
    "requests",
    "its own CPU s",
    "MiB at most",
    "restart: writes",
    "MiB",
    "steady: writes",
    "CPU",
    "deleted back s",
    "edited back s",
)


def format_table(runs: Sequence[Run]) -> str:
    """Return the runs as a Markdown table."""
    rows = [_COLUMNS, ("---:",) * len(_COLUMNS), *map(_row, runs)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _row(run: Run) -> tuple[str, ...]:
    bare, ours = run["bare"], run["operator"]
    restart, steady = ours["restart"], ours["steady"]
    return (
        f"{run['endpoints']:,}",
        f"{bare['objects']:,}",
        f"{bare['seconds']:.1f}",
        f"{ours['seconds']:.1f}",
        f"{ours['seconds'] / bare['seconds']:.2f}",
        f"{bare['cpu_s']:.1f}",
        f"{ours['cpu_s']:.1f}",
        f"{ours['cpu_s'] / bare['cpu_s']:.2f}",
        f"{sum(ours['writes'].values()):,}",
        f"{ours['operator_cpu_s']:.1f}",
        f"{ours['memory_bytes']['most'] / _MIB:.0f}",
        f"{sum(restart['writes'].values())}",
        f"{restart['memory_bytes']['most'] / _MIB:.0f}",
        f"{sum(steady['writes'].values())} in {steady['seconds']:.0f} s",
        f"{steady['cpu_s'] / steady['seconds']:.1%}",
        f"{ours['drift']['deleted_s']:.2f}",
        f"{ours['drift']['edited_s']:.2f}",
    )


def draw(runs: Sequence[Run]) -> str:
    """Return three diagrams over the number of endpoints: time, ratio to bare applies, memory."""
    panels: list[tuple[str, dict[str, tuple[str, Callable[[Run], float]]], float | None]] = [
        (
            "seconds until all is there",
            {
                "bare applies": ("#868e96", lambda run: float(run["bare"]["seconds"])),
                "operator": ("#2f6fde", lambda run: float(run["operator"]["seconds"])),
            },
            None,
        ),
        ("times bare applies", {"ratio": ("#2f6fde", _ratio)}, 1.6),
        ("MiB resident at most", {"memory": ("#2f6fde", _memory)}, 150.0),
    ]
    body = "".join(
        _panel(56 + index * 312, title, curves, limit, runs) for index, (title, curves, limit) in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">'
        f"<style>{_STYLE}</style>{body}</svg>\n"
    )


def _ratio(run: Run) -> float:
    return float(run["operator"]["seconds"] / run["bare"]["seconds"])


def _memory(run: Run) -> float:
    return float(run["operator"]["memory_bytes"]["most"] / _MIB)


def _panel(
    left: float,
    title: str,
    curves: dict[str, tuple[str, Callable[[Run], float]]],
    limit: float | None,
    runs: Sequence[Run],
) -> str:
    sizes = sorted({run["endpoints"] for run in runs})
    values = [read(run) for _, read in curves.values() for run in runs] + ([limit] if limit else [])
    top = _round_up(max(values))
    low, high = math.log10(sizes[0]), math.log10(max(sizes[-1], sizes[0] * 1.001))

    def x(size: int) -> float:
        return left + _PANEL_WIDTH * (math.log10(size) - low) / (high - low)

    def y(value: float) -> float:
        return _TOP + _PANEL_HEIGHT * (1 - value / top)

    parts = [f'<text class="title" x="{left}" y="{_TOP - 24}">{title}</text>']
    for tick in (0.0, top / 2, top):
        parts.append(
            f'<line class="grid" x1="{left}" x2="{left + _PANEL_WIDTH}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        )
        parts.append(f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [
        f'<text x="{x(size):.1f}" y="{_TOP + _PANEL_HEIGHT + 18}" text-anchor="middle">{size:,}</text>'
        for size in sizes
    ]
    if limit is not None:
        parts.append(
            f'<line x1="{left}" x2="{left + _PANEL_WIDTH}" y1="{y(limit):.1f}" y2="{y(limit):.1f}" stroke="#d9480f" '
            f'stroke-dasharray="4 4"/><text x="{left + 4}" y="{y(limit) - 6:.1f}">limit {limit:g}</text>'
        )
    for index, (name, (colour, read)) in enumerate(curves.items()):
        points = sorted((run["endpoints"], read(run)) for run in runs)
        line = " ".join(f"{x(size):.1f},{y(value):.1f}" for size, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(size):.1f}" cy="{y(value):.1f}" r="3" fill="{colour}"/>' for size, value in points]
        if len(curves) > 1:
            parts.append(
                f'<text x="{left}" y="{_TOP + _PANEL_HEIGHT + 42 + 18 * index}" fill="{colour}">● {name}</text>'
            )
    parts.append(f'<text x="{left + _PANEL_WIDTH}" y="{_TOP + _PANEL_HEIGHT + 42}" text-anchor="end">endpoints</text>')
    return "".join(parts)


def _round_up(value: float) -> float:
    step = 10 ** math.floor(math.log10(value))
    return float(next(step * factor for factor in (1, 2, 2.5, 5, 10) if step * factor >= value))
