"""What a tuning found, as data, text, CSV, charts and a page. Pure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import msgspec

from octavo.tools.plots.chart import Chart, Limit, Mark, Series
from octavo.tools.plots.page import Page, Table, to_html
from octavo.tools.tables import table
from octavo.tools.tune.candidates import DEFAULTS, flags
from octavo.tools.tune.pool import Pool
from octavo.tools.tune.slo import Score, Slo
from octavo.tools.tune.slo import text as slo_text
from octavo.tools.tune.verify import COMPARED, QUANTILES, Residual

SCHEMA = 2
_HOUR_S = 3600.0


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate at the traffic's own rate."""

    flags: str
    values: dict[str, object]
    """What of it is not the default, as keys of `--config`."""
    simulated: Score
    cost_per_million: float | None
    """Of output tokens; in device-hours without a price."""
    most_rate: float | None
    """Arrivals per second up to which the SLO holds in simulation; None: not looked at."""
    live: Score | None = None
    simulated_alike: Score | None = None
    """Of the requests of the live run alone."""
    residual: Residual | None = None
    """What the two differ by."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate at some rate, simulated."""

    flags: str
    score: Score
    cost_per_million: float
    is_on_front: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything."""

    kind: str = "octavo tune"
    schema: int = SCHEMA
    model: str
    device: str
    """What was simulated."""
    slo: Slo
    traffic: dict[str, float]
    calibration: dict[str, object]
    recommended: dict[str, object]
    """As keys of `--config`: what the operator gave, and what was found."""
    flags: str
    """What was found, to type; empty when the defaults are best."""
    chosen_by: str
    """simulation or live runs."""
    verdict: str
    is_met: bool
    """Whether the SLO holds at the traffic's rate."""
    is_confirmed: bool | None
    """Whether live runs gave what the simulation said; None: there were none."""
    rows: tuple[Row, ...]
    points: tuple[Point, ...]
    num_simulations: int
    notes: tuple[str, ...]
    device_price: float | None
    environment: dict[str, object]
    pool: Pool | None = None
    """What KV cache is needed; None: not searched."""
    num_rounds: int = 1
    """Searches, each with its live runs."""


def cost_per_million(score: Score, price: float | None) -> float | None:
    """Of output tokens, in the price's currency, or in device-hours without one."""
    if score.tokens_per_s <= 0:
        return None
    return 1e6 / score.tokens_per_s / _HOUR_S * (1.0 if price is None else price)


def to_json(report: Report) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report), indent=1).decode()


def _cost_title(report: Report) -> str:
    return "cost/M tok" if report.device_price is not None else "dev-h/M tok"


def _header(report: Report) -> tuple[str, ...]:
    last = ("live goodput/s", "live TTFT", "live ITL", "sim/live") if has_live(report) else ()
    return (
        "flags",
        "goodput/s",
        "good",
        "p99 TTFT ms",
        "p99 ITL ms",
        "tok/s",
        _cost_title(report),
        "SLO to req/s",
        *last,
    )


def has_live(report: Report) -> bool:
    """Whether anything ran."""
    return any(row.live is not None for row in report.rows)


def _cells(report: Report, row: Row) -> list[str]:
    found = row.simulated
    cells = [
        row.flags,
        f"{found.goodput:.2f}",
        f"{found.good_share:.1%}",
        f"{found.ttft_p99:.1f}",
        f"{found.itl_p99:.1f}",
        f"{found.tokens_per_s:.0f}",
        "-" if row.cost_per_million is None else f"{row.cost_per_million:.3g}",
        "-" if row.most_rate is None else f"{row.most_rate:.2f}",
    ]
    if not has_live(report):
        return cells
    live = row.live
    if live is None:
        return [*cells, "-", "-", "-", "-"]
    off = "-" if row.residual is None else f"{row.residual.off:+.0%}"
    return [
        *cells,
        f"{live.goodput:.2f}",
        f"{live.ttft_p99:.1f}",
        f"{live.itl_p99:.1f}",
        off,
    ]


def residual_header() -> tuple[str, ...]:
    """Of the table of what live runs gave beside what was said of them."""
    times = [f"p{percent} {name.upper()} ms" for name, percent in COMPARED]
    return ("simulated / live", "goodput/s", "(seeds)", "same at", *times, "steps")


def residual_rows(report: Report) -> list[list[str]]:
    """One per live run."""
    rows = []
    for row in report.rows:
        if row.residual is None or row.live is None or row.simulated_alike is None:
            continue
        found = row.residual
        times = [found.times_ms[f"{name} p{percent}"] for name, percent in COMPARED]
        rows.append(
            [
                row.flags,
                f"{row.simulated_alike.goodput:.2f} / {row.live.goodput:.2f}",
                f"{found.low:.2f}-{found.high:.2f}",
                "-" if found.rate is None else f"{found.rate:.2f} x",
                *[f"{told:.4g} / {took:.4g}" for told, took in times],
                "-" if found.steps is None else f"{found.steps:.2f} x",
            ]
        )
    return rows


def to_text(report: Report) -> str:
    """For a terminal."""
    parts = ["\n".join(summary(report))]
    parts.append(table(_header(report), [_cells(report, row) for row in report.rows]))
    if has_live(report):
        parts.append(table(residual_header(), residual_rows(report)))
    front = [point for point in report.points if point.is_on_front]
    if front:
        rows = [
            (p.flags, f"{p.score.rate:.2f}", f"{p.score.goodput:.2f}", f"{p.cost_per_million:.3g}")
            for p in front
        ]
        title = "no candidate at any rate gives more goodput for less:"
        header = ("flags", "requests/s", "goodput/s", _cost_title(report))
        parts.append(f"{title}\n{table(header, rows)}")
    parts += [f"note: {note}" for note in report.notes]
    parts.append(f"{report.verdict}\n\n{paste(report)}")
    return "\n\n".join(parts)


def summary(report: Report) -> list[str]:
    """What was asked, of what."""
    traffic = report.traffic
    return [
        f"{report.model} on {report.device}",
        f"traffic: {traffic['requests']:.0f} requests, {traffic['rate']:.3g} per second, prompts of "
        f"{traffic['prompt_mean']:.0f} tokens (p99 {traffic['prompt_p99']:.0f}), outputs of "
        f"{traffic['output_mean']:.0f} (p99 {traffic['output_p99']:.0f}), "
        f"{traffic['shared']:.0%} of prompt tokens in shared prefixes",
        f"asked for: {slo_text(report.slo)}",
        f"{report.num_simulations} simulations",
    ]


def paste(report: Report) -> str:
    """The command line."""
    model = "" if report.model == "octavo-mini" else f" {report.model}"
    given = {k: v for k, v in report.recommended.items() if k != "model"}
    return " ".join([f"octavo serve{model}", *flags(given)])


def to_csv(report: Report) -> str:
    """All points, one line each."""
    out = io.StringIO()
    names = ("rate", "goodput", "good_share", "ttft_p99", "itl_p99", "tokens_per_s")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["flags", *names, "cost_per_million", "meets_slo", "on_front"])
    for point in report.points:
        values = [getattr(point.score, name) for name in names]
        writer.writerow(
            [point.flags, *values, point.cost_per_million, point.score.meets, point.is_on_front]
        )
    return out.getvalue()


def charts(report: Report, default: str, best: str) -> list[Chart]:
    """Goodput and cost; first tokens and gaps over the rate."""
    lines: dict[str, list[Point]] = {}
    for point in report.points:
        lines.setdefault(point.flags, []).append(point)
    for line in lines.values():
        line.sort(key=lambda point: point.score.rate)
    mains = list(dict.fromkeys((best, default)))
    order = [*mains, *(name for name, line in lines.items() if name not in mains and len(line) > 3)]
    unit = "cost" if report.device_price is not None else "device-hours"
    front = [point for point in report.points if point.is_on_front]
    marks = [Mark(p.score.goodput, p.cost_per_million, f"{p.score.rate:.3g}/s") for p in front[-1:]]
    live = [row for row in report.rows if row.live is not None and row.flags in mains]
    seen = [(f"live, {_short(row.flags)}", row.live) for row in live if row.live is not None]
    rates = [Mark(each.rate, each.ttft_p99, name) for name, each in seen]
    gaps = [Mark(each.rate, each.itl_p99, name) for name, each in seen]

    def series(x: str, y: str) -> tuple[Series, ...]:
        return tuple(
            Series(name, tuple((_value(p, x), _value(p, y)) for p in lines[name]), name in mains)
            for name in order
            if name in lines
        )

    x_rate = "requests per second that come"
    return [
        Chart(
            "Goodput and cost, simulated",
            "requests per second that meet the SLO",
            f"{unit} per million output tokens",
            series("goodput", "cost"),
            marks=tuple(marks),
            is_log_y=True,
        ),
        Chart(
            "First token",
            x_rate,
            "p99 TTFT, ms",
            series("rate", "ttft_p99"),
            _limit(report.slo, "ttft"),
            tuple(rates),
            is_log_y=True,
        ),
        Chart(
            "Between tokens",
            x_rate,
            "p99 ITL, ms",
            series("rate", "itl_p99"),
            _limit(report.slo, "itl"),
            tuple(gaps),
            is_log_y=True,
        ),
        *_quantile_charts(report, best),
    ]


def _quantile_charts(report: Report, best: str) -> list[Chart]:
    """Requests of the live run of what was found, from the fastest to the slowest, beside the simulated ones."""
    found = next((r.residual for r in report.rows if r.flags == best and r.residual), None)
    if found is None:
        return []
    charts = []
    for name, y in (("ttft", "TTFT, ms"), ("tpot", "mean time between tokens, ms")):
        pairs = found.quantiles_ms[name]
        lines = {
            "simulated": tuple([told for told, _ in pairs]),
            "live": tuple([took for _, took in pairs]),
            "simulated at the pace of that run": found.as_it_was_ms.get(name, ()),
        }
        series = [
            Series(title, tuple(zip(map(float, QUANTILES), line, strict=True)))
            for title, line in lines.items()
            if line
        ]
        title = f"The requests of the live run: {y.split(',')[0]}"
        charts.append(Chart(title, "percent of the requests that had no more", y, tuple(series)))
    return charts


def _short(name: str) -> str:
    return "defaults" if name == DEFAULTS else "found"


def _value(point: Point, name: str) -> float:
    if name == "cost":
        return point.cost_per_million
    value: float = getattr(point.score, name)
    return value


def _limit(slo: Slo, name: str) -> tuple[Limit, ...]:
    limit = slo.p99.get(name) or slo.each.get("tpot" if name == "itl" else name)
    return () if limit is None else (Limit(limit, f"asked for: {limit:g} ms"),)


def page(report: Report, found: Sequence[Chart]) -> str:
    """The HTML file."""
    name = report.flags or DEFAULTS
    chosen = frozenset(i for i, row in enumerate(report.rows) if row.flags == name)
    rows = [_cells(report, row) for row in report.rows]
    header = _header(report)
    beside = residual_rows(report)
    live = [Table("Live runs", residual_header(), beside, frozenset())] if beside else []
    return to_html(
        Page(
            title=f"octavo tune: {report.model}",
            lines=[*summary(report), report.verdict],
            charts=found,
            tables=[Table("Candidates at the traffic's rate", header, rows, chosen), *live],
            code=paste(report),
            notes=report.notes,
        )
    )


def traffic_of(lengths: Sequence[tuple[int, int, int]], rate: float) -> dict[str, float]:
    """Of (prompt, output, shared) tokens."""
    prompts = sorted(prompt for prompt, _, _ in lengths)
    outputs = sorted(output for _, output, _ in lengths)
    p99 = math.ceil(0.99 * len(lengths)) - 1
    return {
        "requests": len(lengths),
        "rate": rate,
        "prompt_mean": sum(prompts) / len(prompts),
        "prompt_p99": prompts[p99],
        "output_mean": sum(outputs) / len(outputs),
        "output_p99": outputs[p99],
        "shared": sum(shared for _, _, shared in lengths) / sum(prompts),
    }
