"""A page of charts and tables: one HTML file, with SVG in it and nothing from elsewhere. Light and dark as the reader's
system is. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from octavo.tools.plots.chart import Chart, Series, Span, shown, spans, tick_text

WIDTH, HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 14, 46
_COLOURS = 6
_STYLE = """
:root { color-scheme: light dark;
  --paper: light-dark(#f6f2e9, #131418); --card: light-dark(#fffdf8, #1b1d22);
  --ink: light-dark(#211d17, #ece8df); --muted: light-dark(#6b6356, #a29c90);
  --line: light-dark(#e0d9c9, #30323a);
  --s0: light-dark(#b0331b, #ff8261); --s1: light-dark(#24648f, #6db7e8);
  --s2: light-dark(#39755a, #67c99a); --s3: light-dark(#a06a00, #eab64b);
  --s4: light-dark(#6d4795, #c39be8); --s5: light-dark(#4d5560, #b4bcc8); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 28px 20px 60px; max-width: 1000px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums; }
h1, h2 { font-family: Georgia, "DejaVu Serif", serif; line-height: 1.25; margin: 0 0 6px; }
h1 { font-size: 24px; } h2 { font-size: 17px; }
p { margin: 4px 0; } .muted { color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin-top: 18px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: 5px 9px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr.chosen td { font-weight: 650; }
pre { overflow-x: auto; margin: 6px 0; font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--muted); font-size: 12px; } svg .name { fill: var(--ink); }
.grid { stroke: var(--line); stroke-width: 1; }
.limit { stroke: var(--muted); stroke-width: 1.5; stroke-dasharray: 5 4; }
.other { fill: none; stroke: var(--muted); stroke-width: 1; opacity: 0.35; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 8px 0 0; padding: 0; list-style: none; font-size: 13.5px; }
.legend i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; margin-right: 7px; vertical-align: middle; }
"""


class Table(NamedTuple):
    """Rows under a header; those at `chosen` stand out."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    chosen: frozenset[int] = frozenset()


class Page(NamedTuple):
    """What a page says, from above to below."""

    title: str
    lines: Sequence[str]
    charts: Sequence[Chart]
    tables: Sequence[Table] = ()
    code: str = ""
    """To paste."""
    notes: Sequence[str] = ()


def to_html(page: Page) -> str:
    """The file's text."""
    parts = [f"<h1>{escape(page.title)}</h1>"]
    parts += [f'<p class="muted">{escape(line)}</p>' for line in page.lines]
    if page.code:
        parts.append(f"<section><h2>To paste</h2><pre>{escape(page.code)}</pre></section>")
    parts += [_section(chart) for chart in page.charts]
    parts += [_table(table) for table in page.tables]
    if page.notes:
        notes = "".join(f"<p>{escape(note)}</p>" for note in page.notes)
        parts.append(f"<section><h2>Notes</h2>{notes}</section>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(page.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _section(chart: Chart) -> str:
    mains = [series for series in chart.series if series.is_main]
    legend = "".join(
        f'<li><i style="background:var(--s{index % _COLOURS})"></i>{escape(series.name)}</li>'
        for index, series in enumerate(mains)
    )
    return f'<section><h2>{escape(chart.title)}</h2>{to_svg(chart)}<ul class="legend">{legend}</ul></section>'


def to_svg(chart: Chart) -> str:
    """The axes, the lines and a word on each point when it is pointed at."""
    x, y = spans(chart)
    parts = [_axes(chart, x, y)]
    mains = [series for series in chart.series if series.is_main]
    for series in chart.series:
        if not series.is_main:
            parts.append(f'<polyline class="other" points="{_path(chart, series, x, y)}"/>')
    for limit in chart.limits:
        at = _up(y, limit.y)
        parts.append(
            f'<line class="limit" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT + 8}" y="{at - 6:.1f}">{escape(limit.text)}</text>'
        )
    for index, series in enumerate(mains):
        parts.append(_line(chart, series, f"var(--s{index % _COLOURS})", x, y))
    for mark in chart.marks:
        for mark_x, mark_y in shown(chart, [(mark.x, mark.y)]):
            across, up = _across(x, mark_x), _up(y, mark_y)
            is_right = across > WIDTH * 0.7
            parts.append(
                f'<circle cx="{across:.1f}" cy="{up:.1f}" r="6.5" fill="none" stroke="var(--ink)" stroke-width="1.5"/>'
                f'<text class="name" x="{across + (-11 if is_right else 11):.1f}" y="{up - 9:.1f}" '
                f'text-anchor="{"end" if is_right else "start"}">{escape(mark.text)}</text>'
            )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}">' + "".join(parts) + "</svg>"
    )


def _axes(chart: Chart, x: Span, y: Span) -> str:
    parts = []
    for tick in y.ticks:
        at = _up(y, tick)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{tick_text(tick)}</text>'
        )
    for tick in x.ticks:
        at = _across(x, tick)
        parts.append(
            f'<text x="{at:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick_text(tick)}</text>'
        )
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(
        f'<text x="{(_LEFT + WIDTH - _RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">{escape(chart.x)}</text>'
        f'<text transform="translate(15 {middle}) rotate(-90)" text-anchor="middle">{escape(chart.y)}</text>'
    )
    return "".join(parts)


def _line(chart: Chart, series: Series, colour: str, x: Span, y: Span) -> str:
    dots = "".join(
        f'<circle cx="{_across(x, px):.1f}" cy="{_up(y, py):.1f}" r="3.2" fill="{colour}">'
        f"<title>{escape(series.name)}: {tick_text(px)}, {tick_text(py)}</title></circle>"
        for px, py in shown(chart, series.points)
    )
    path = _path(chart, series, x, y)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.2"/>{dots}'


def _path(chart: Chart, series: Series, x: Span, y: Span) -> str:
    points = shown(chart, series.points)
    return " ".join(f"{_across(x, px):.1f},{_up(y, py):.1f}" for px, py in points)


def _across(span: Span, value: float) -> float:
    return _LEFT + span.at(value) * (WIDTH - _LEFT - _RIGHT)


def _up(span: Span, value: float) -> float:
    return HEIGHT - _BOTTOM - span.at(value) * (HEIGHT - _TOP - _BOTTOM)


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join(
        ('<tr class="chosen">' if index in table.chosen else "<tr>")
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for index, row in enumerate(table.rows)
    )
    return (
        f'<section><h2>{escape(table.title)}</h2><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></section>"
    )
