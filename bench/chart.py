"""The picture: throughput and time to first token against concurrency, one line a server, as one SVG file.

Written by hand, so that a record can be drawn without any plotting library. Colours follow the reader's light or dark
scheme; lines differ by marker too, so that they can be told apart without colour.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from bench.report import Run

_WIDTH, _HEIGHT = 960, 440
_PANEL_TOP, _PANEL_HEIGHT, _PANEL_WIDTH = 48, 270, 390
_PANEL_LEFTS = (64, 536)
_LEGEND_TOP = _PANEL_TOP + _PANEL_HEIGHT + 58
_LEGEND_COLUMNS = 4
# Eight hues of the same weight that stay readable on white and on near-black.
_COLOURS = (
    *("#2f6fde", "#d9480f", "#2b8a3e", "#9c36b5", "#c99700"),
    *("#0c8599", "#e64980", "#868e96", "#5c940d", "#845ef7"),
)
_STYLE = """
  text { font: 12px system-ui, sans-serif; fill: #1f2328; }
  .title { font-size: 14px; font-weight: 600; }
  .axis { stroke: #6e7781; } .grid { stroke: #d0d7de; }
  @media (prefers-color-scheme: dark) { text { fill: #e6edf3; } .grid { stroke: #30363d; } .axis { stroke: #8b949e; } }
"""
Curves = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """One of the two diagrams: where it stands and how values become pixels."""

    left: float
    levels: Sequence[int]
    ticks: Sequence[float]
    is_logarithmic: bool

    def x(self, level: int) -> float:
        """Gives concurrencies equal distances, whatever their ratio."""
        step = _PANEL_WIDTH / max(len(self.levels) - 1, 1)
        return self.left + step * self.levels.index(level)

    def y(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        if self.is_logarithmic:
            value, low, high = (math.log10(max(number, 1e-9)) for number in (value, low, high))
        share = (value - low) / (high - low)
        return _PANEL_TOP + _PANEL_HEIGHT * (1 - share)


def draw(runs: Sequence[Run], servers: Sequence[str]) -> str:
    """Gives the SVG document; servers without a closed-loop run have no line."""
    closed = [run for run in runs if run.arrivals_per_s is None]
    levels = sorted({run.concurrency for run in closed})
    if not levels:
        return _document(["<text x='64' y='60'>nothing was measured</text>"])
    names = [name for name in servers if any(run.server == name for run in closed)]
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
    speeds = _collect(closed, names, lambda run: run.tokens_per_s)
    ttfts = _collect(closed, names, lambda run: run.ttft_p50_ms)
    left = _Panel(left=_PANEL_LEFTS[0], levels=levels, ticks=linear_ticks(_values(speeds)), is_logarithmic=False)
    right = _Panel(left=_PANEL_LEFTS[1], levels=levels, ticks=decade_ticks(_values(ttfts)), is_logarithmic=True)
    return _document(
        [
            *_draw_panel(left, "Throughput, tok/s (more is better)", speeds, colours),
            *_draw_panel(right, "Time to first token, p50 ms (less is better)", ttfts, colours),
            *_draw_legend(colours),
        ]
    )


def linear_ticks(values: Sequence[float]) -> list[float]:
    """Gives about five round values from 0 to one at or above the largest."""
    highest = max(*values, 1e-9)
    raw = highest / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    return [step * index for index in range(math.ceil(highest / step) + 1)]


def decade_ticks(values: Sequence[float]) -> list[float]:
    """Gives the powers of ten around all values, at least two."""
    low = math.floor(math.log10(max(min(values), 1e-3)))
    high = max(math.ceil(math.log10(max(*values, 1e-3))), low + 1)
    return [10.0**power for power in range(low, high + 1)]


def _collect(runs: Sequence[Run], names: Sequence[str], read: Callable[[Run], float]) -> Curves:
    return {
        name: {
            level: statistics.median(read(run) for run in runs if (run.server, run.concurrency) == (name, level))
            for level in sorted({run.concurrency for run in runs if run.server == name})
        }
        for name in names
    }


def _values(curves: Curves) -> list[float]:
    return [value for curve in curves.values() for value in curve.values()]


def _draw_panel(panel: _Panel, title: str, curves: Curves, colours: Mapping[str, str]) -> list[str]:
    bottom, right = _PANEL_TOP + _PANEL_HEIGHT, panel.left + _PANEL_WIDTH
    parts = [f"<text class='title' x='{panel.left}' y='28'>{escape(title)}</text>"]
    for tick in panel.ticks:
        y = panel.y(tick)
        parts.append(f"<line class='grid' x1='{panel.left}' x2='{right}' y1='{y:.1f}' y2='{y:.1f}'/>")
        parts.append(f"<text x='{panel.left - 8}' y='{y + 4:.1f}' text-anchor='end'>{tick:,.10g}</text>")
    parts.append(f"<line class='axis' x1='{panel.left}' x2='{right}' y1='{bottom}' y2='{bottom}'/>")
    parts += (
        f"<text x='{panel.x(level):.1f}' y='{bottom + 20}' text-anchor='middle'>C={level}</text>"
        for level in panel.levels
    )
    for index, (name, curve) in enumerate(curves.items()):
        points = [(panel.x(level), panel.y(value)) for level, value in curve.items()]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colours[name]}' stroke-width='2'/>")
        parts += (_draw_marker(x, y, colours[name], index) for x, y in points)
    return parts


def _draw_marker(x: float, y: float, colour: str, index: int) -> str:
    if index % 3 == 0:
        return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>"
    if index % 3 == 1:
        return f"<rect x='{x - 4:.1f}' y='{y - 4:.1f}' width='8' height='8' fill='{colour}'/>"
    return f"<path d='M{x:.1f} {y - 5:.1f} l5 9 h-10 z' fill='{colour}'/>"


def _draw_legend(colours: Mapping[str, str]) -> list[str]:
    parts = []
    for index, (name, colour) in enumerate(colours.items()):
        x = 64 + index % _LEGEND_COLUMNS * (_WIDTH - 64) / _LEGEND_COLUMNS
        y = _LEGEND_TOP + index // _LEGEND_COLUMNS * 22
        parts.append(_draw_marker(x, y - 4, colour, index))
        parts.append(f"<text x='{x + 12:.1f}' y='{y}'>{escape(name)}</text>")
    return parts


def _document(parts: Sequence[str]) -> str:
    size = f"viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' height='{_HEIGHT}'"
    body = "\n".join(parts)
    return f"<svg xmlns='http://www.w3.org/2000/svg' {size}>\n<style>{_STYLE}</style>\n{body}\n</svg>\n"
