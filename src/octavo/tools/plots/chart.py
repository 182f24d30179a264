"""A chart as data: what `page.py` draws as SVG and `png.py` as PNG, so that both show the same. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

MOST_TICKS = 7


class Series(NamedTuple):
    """One line through points, in the order given."""

    name: str
    points: tuple[tuple[float, float], ...]
    is_main: bool = True
    """Else it is drawn thin, behind the others, and stands in no legend."""


class Limit(NamedTuple):
    """A horizontal line: what was asked for."""

    y: float
    text: str


class Mark(NamedTuple):
    """A point with a word beside it."""

    x: float
    y: float
    text: str


class Chart(NamedTuple):
    """One pair of axes. Values are 0 or more; `is_log_y` needs them above 0 and drops what is not."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    limits: tuple[Limit, ...] = ()
    marks: tuple[Mark, ...] = ()
    is_log_y: bool = False


class Span(NamedTuple):
    """An axis: its ends and where it is labelled."""

    low: float
    high: float
    ticks: tuple[float, ...]
    is_log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 1 within the axis."""
        if self.is_log:
            low, high = math.log(self.low), math.log(self.high)
            return (math.log(value) - low) / (high - low)
        return (value - self.low) / (self.high - self.low)


def spans(chart: Chart) -> tuple[Span, Span]:
    """The two axes, wide enough for every point, mark and limit."""
    points = [point for series in chart.series for point in shown(chart, series.points)]
    points += shown(chart, [(mark.x, mark.y) for mark in chart.marks])
    xs = [x for x, _ in points] or [1.0]
    ys = [y for _, y in points] + [limit.y for limit in chart.limits] or [1.0]
    return _linear(max(xs)), (_log(min(ys), max(ys)) if chart.is_log_y else _linear(max(ys)))


def shown(chart: Chart, points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that can be drawn: finite, and above 0 where the axis is logarithmic."""
    return [
        (x, y)
        for x, y in points
        if math.isfinite(x) and math.isfinite(y) and (y > 0 or not chart.is_log_y)
    ]


def _linear(most: float) -> Span:
    most = most if most > 0 else 1.0
    raw = most * 1.05 / (MOST_TICKS - 1)
    scale = 10 ** math.floor(math.log10(raw))
    step = next(unit * scale for unit in (1, 2, 2.5, 5, 10) if unit * scale >= raw)
    count = math.ceil(most * 1.05 / step)
    return Span(0.0, count * step, tuple(index * step for index in range(count + 1)))


def _log(least: float, most: float) -> Span:
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most * 1.02))
    high = max(high, low + 1)
    units = (1, 2, 5) if high - low <= 2 else (1,)
    every = [unit * 10.0**power for power in range(low, high + 1) for unit in units]
    below = [tick for tick in every if tick <= least] or every[:1]
    above = [tick for tick in every if tick >= most * 1.02] or every[-1:]
    ticks = tuple(tick for tick in every if below[-1] <= tick <= above[0])
    return Span(ticks[0], ticks[-1], ticks, is_log=True)


def tick_text(value: float) -> str:
    """`0.5`, `20`, `5k`, `2M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
