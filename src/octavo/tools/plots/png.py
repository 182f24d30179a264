"""Charts as a PNG, by matplotlib (`octavo[plots]`), which is loaded here alone and when a file is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.tools.plots.chart import Chart, shown, spans, tick_text

_COLOURS = ("#b0331b", "#24648f", "#39755a", "#a06a00", "#6d4795", "#4d5560")
_INK, _MUTED, _LINE, _CARD = "#211d17", "#6b6356", "#e0d9c9", "#fffdf8"


def check() -> None:
    """Whether PNGs can be written, asked before what they show is measured.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            "PNG plots need matplotlib, which is not installed.",
            code="E-DEP-01",
            fix="Run `pip install 'octavo[plots]'`, or add --no-png: the HTML page needs nothing.",
        )


def write(charts: Sequence[Chart], path: Path) -> None:
    """All charts below each other, in one file.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    check()
    # lazy: half a second and an optional dependency, for those who ask for a PNG
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5 * len(charts)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.set_facecolor(_CARD)
    for index, chart in enumerate(charts):
        axes = figure.add_subplot(len(charts), 1, index + 1)
        _draw(axes, chart)
    figure.savefig(path)


def _draw(axes: object, chart: Chart) -> None:
    # lazy: see `write`
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    x, y = spans(chart)
    axes.set_facecolor(_CARD)
    axes.set_title(chart.title, color=_INK, loc="left", fontsize=11)
    axes.set_xlabel(chart.x, color=_MUTED)
    axes.set_ylabel(chart.y, color=_MUTED)
    mains = 0
    for series in chart.series:
        points = shown(chart, series.points)
        xs, ys = [px for px, _ in points], [py for _, py in points]
        if series.is_main:
            colour = _COLOURS[mains % len(_COLOURS)]
            axes.plot(xs, ys, color=colour, lw=2, marker="o", ms=4, label=series.name, zorder=3)
            mains += 1
        else:
            axes.plot(xs, ys, color=_MUTED, lw=0.8, alpha=0.35, zorder=1)
    for limit in chart.limits:
        axes.axhline(limit.y, color=_MUTED, lw=1.2, ls="--", zorder=2)
        axes.annotate(
            limit.text,
            (0.01, limit.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 4),
            textcoords="offset points",
            color=_MUTED,
            fontsize=8,
        )
    for mark in chart.marks:
        axes.plot([mark.x], [mark.y], "o", ms=10, mfc="none", mec=_INK, zorder=4)
        axes.annotate(
            mark.text,
            (mark.x, mark.y),
            xytext=(8, 8),
            textcoords="offset points",
            color=_INK,
            fontsize=9,
        )
    if y.is_log:
        axes.set_yscale("log")
        axes.minorticks_off()
    axes.set_xlim(x.low, x.high)
    axes.set_ylim(y.low, y.high)
    axes.set_xticks(x.ticks, [tick_text(tick) for tick in x.ticks])
    axes.set_yticks(y.ticks, [tick_text(tick) for tick in y.ticks])
    axes.grid(axis="y", color=_LINE)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_MUTED, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    if mains:
        axes.legend(frameon=False, fontsize=8, labelcolor=_INK)
