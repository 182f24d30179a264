"""`octavo bench sweep`: `bench serve` at one load after another, drawn as latency against throughput.

Against a server that runs (`--base-url`), or one that is started for the occasion. A point whose run is INVALID is kept and
says so, and the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import copy
import csv
import io
import math
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.tools import flags, output
from octavo.tools.bench import serve
from octavo.tools.bench.environment import environment
from octavo.tools.bench.report import Report
from octavo.tools.parser import Parser, number
from octavo.tools.plots import files
from octavo.tools.plots.chart import Chart, Series
from octavo.tools.plots.page import Page, Table, to_html
from octavo.tools.started import FIELDS, started
from octavo.tools.tables import table

MOST_POINTS = 64
_METRICS = ("ttft", "tpot", "itl", "e2el")
_QUANTILES = ("p50", "p90", "p99")


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One load."""

    load: float
    """Requests per second, or requests at once."""
    valid: bool
    invalid_because: tuple[str, ...]
    completed: int
    failed: int
    requests_per_s: float
    output_tokens_per_s: float
    peak_concurrency: int
    goodput: float | None
    latencies_ms: dict[str, dict[str, float]]
    """Metric -> mean and quantiles."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """All of them."""

    kind: str = "octavo bench sweep"
    schema: int = 1
    by: str
    """request_rate or max_concurrency."""
    points: tuple[Point, ...]
    arguments: dict[str, object]
    environment: dict[str, object]


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    where = parser.add_argument_group("server")
    where.add_argument(
        "model", nargs="?", metavar="MODEL", help="To start; with --base-url, its name there."
    )
    where.add_argument(
        "--url", "--base-url", help="Address of a server that runs; default: one is started."
    )
    serve.add_call_flags(where)
    where.add_argument(
        "--config", metavar="FILE.yaml", help="Flags of the server that is started, from a file."
    )
    load = parser.add_argument_group("loads: one of the two lists")
    load.add_argument(
        "--request-rate",
        nargs="+",
        type=number(1e-3, 1e5),
        metavar="X",
        help="Arrivals per second, one run each.",
    )
    load.add_argument(
        "--max-concurrency",
        nargs="+",
        type=number(1, 1 << 16, whole=True),
        metavar="N",
        help="Requests at once, one run each.",
    )
    count = number(1, 1 << 20, whole=True)
    load.add_argument(
        "--num-prompts", type=count, default=100, metavar="N", help="Requests of each run [100]."
    )
    serve.add_spread_flags(load)
    serve.add_request_flags(parser)
    serve.add_judgement_flags(parser)
    files.add_arguments(parser)
    output.add_json_flag(parser)
    flags.add_fields(parser.add_argument_group("engine that is started"), EngineConfig, FIELDS)


def run(args: argparse.Namespace) -> int:
    """Run the verb: 0 where every run is valid."""
    by, loads = _loads(args)
    objectives = serve.parse_objectives(args.goodput)
    if args.seed is None:
        args.seed = secrets.randbits(32)
    serve.make_plan(_at(args, by, loads[0], 0))  # for its errors, before a server is started
    folder = files.prepare(args)
    with _server(args) as url:
        args.url = url
        points = [_measure(args, by, load, i, objectives) for i, load in enumerate(loads)]
    kept = {name: value for name, value in vars(args).items() if name != "api_key"}
    found = Sweep(by=by, points=tuple(points), arguments=kept, environment=environment())
    output.show(args.json, lambda: to_text(found), lambda: to_json(found))
    if folder is not None:
        _write(found, folder, has_png=not args.no_png)
        print(f"written to {folder}", file=sys.stderr)
    return int(not all(point.valid for point in points))


def _loads(args: argparse.Namespace) -> tuple[str, list[float]]:
    given = [name for name in ("request_rate", "max_concurrency") if getattr(args, name)]
    if len(given) != 1:
        raise ConfigError(
            f"{len(given)} of --request-rate and --max-concurrency are given; expected one.",
            code="E-FLAG-02",
            fix="For example --request-rate 1 2 4 8.",
        )
    loads = sorted(set(getattr(args, given[0])))
    if len(loads) > MOST_POINTS:
        raise ConfigError(f"{len(loads)} loads given; expected at most {MOST_POINTS}.")
    if args.trace is not None and given[0] == "request_rate":
        raise ConfigError(
            "--request-rate with --trace, whose requests may come at times of their own.",
            code="E-FLAG-02",
            fix="Sweep --max-concurrency, or leave --trace out.",
        )
    return given[0], loads


@contextlib.contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """The address to load, of a server that is started unless one was named."""
    given = [name for name in FIELDS if hasattr(args, name)]
    if args.url is not None:
        if given or args.config:
            name = f"--{given[0].replace('_', '-')}" if given else "--config"
            raise ConfigError(
                f"{name} says how to start a server; with --base-url none is started.",
                code="E-FLAG-02",
                fix="Leave one of them out.",
            )
        yield args.url
        return
    values = flags.read_config_file(args.config) if args.config else {}
    values |= {name: getattr(args, name) for name in given}
    if args.model is not None:
        values["model"] = args.model
    config = flags.build(EngineConfig, values)
    args.model = None  # what it answers to is its own affair
    known = {flag.field for flag in flags.flags_of(EngineConfig)}
    with started({k: getattr(config, k) if k in known else v for k, v in values.items()}) as url:
        yield url


def _at(args: argparse.Namespace, by: str, load: float, index: int) -> argparse.Namespace:
    """The arguments of one run: other prompts than the runs before, so that none is cached."""
    mine = copy.copy(args)
    mine.request_rate = load if by == "request_rate" else math.inf
    mine.max_concurrency = int(load) if by == "max_concurrency" else None
    mine.seed = args.seed + index
    return mine


def _measure(
    args: argparse.Namespace, by: str, load: float, index: int, objectives: dict[str, float]
) -> Point:
    mine = _at(args, by, load, index)
    print(f"... {by.replace('_', ' ')} {load:g}", file=sys.stderr, flush=True)
    made = asyncio.run(serve.measure(mine, serve.make_plan(mine), objectives))
    return point_of(load, made)


def point_of(load: float, made: Report) -> Point:
    """A run as a point."""
    totals = made.totals
    return Point(
        load=load,
        valid=made.valid,
        invalid_because=tuple(f"{r.cause}: {r.text}" for r in made.invalid_because),
        completed=totals.completed,
        failed=totals.failed,
        requests_per_s=totals.requests_per_s,
        output_tokens_per_s=totals.output_tokens_per_s,
        peak_concurrency=totals.peak_concurrency,
        goodput=None if made.goodput is None else made.goodput.requests_per_s,
        latencies_ms={
            name: {q: getattr(summary, q) for q in ("mean", *_QUANTILES)}
            for name, summary in made.latencies_ms.items()
        },
    )


def _title(found: Sweep) -> str:
    return "requests/s" if found.by == "request_rate" else "at once"


def _rows(found: Sweep) -> tuple[tuple[str, ...], list[list[str]]]:
    has_goodput = any(point.goodput is not None for point in found.points)
    header = (
        _title(found),
        "done/s",
        *(("goodput/s",) if has_goodput else ()),
        "tok/s",
        *(f"{q} {name.upper()} ms" for name in ("ttft", "itl") for q in ("p50", "p99")),
        "valid",
    )
    rows = []
    for point in found.points:
        row = [f"{point.load:g}", f"{point.requests_per_s:.2f}"]
        row += [f"{point.goodput or 0:.2f}"] * has_goodput
        row.append(f"{point.output_tokens_per_s:.0f}")
        for name in ("ttft", "itl"):
            values = point.latencies_ms.get(name)
            row += [f"{values[q]:.1f}" if values else "-" for q in ("p50", "p99")]
        rows.append([*row, "yes" if point.valid else "NO"])
    return header, rows


def to_text(found: Sweep) -> str:
    """A table, and under it why points are INVALID."""
    header, rows = _rows(found)
    return "\n\n".join([table(header, rows), *_reasons(found)])


def _reasons(found: Sweep) -> list[str]:
    return [
        f"INVALID at {point.load:g} {_title(found)} ({reason})"
        for point in found.points
        for reason in point.invalid_because
    ]


def to_json(found: Sweep) -> str:
    """Indented JSON."""
    return msgspec.json.format(msgspec.json.encode(found), indent=1).decode()


def to_csv(found: Sweep) -> str:
    """A line per load."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    plain = ("valid", "completed", "failed", "requests_per_s", "output_tokens_per_s", "goodput")
    columns = [(name, q) for name in _METRICS for q in ("mean", *_QUANTILES)]
    writer.writerow([found.by, *plain, *(f"{name}_{q}_ms" for name, q in columns)])
    for point in found.points:
        values = [point.latencies_ms.get(name, {}).get(q, "") for name, q in columns]
        writer.writerow([point.load, *(getattr(point, name) for name in plain), *values])
    return out.getvalue()


def charts(found: Sweep) -> list[Chart]:
    """First tokens and gaps against the tokens that came out."""
    names = {"ttft": "Time to the first token", "itl": "Time between tokens"}
    return [
        Chart(
            f"{title} against throughput",
            "output tokens per second",
            f"{name.upper()}, ms",
            tuple(
                Series(
                    f"{q}",
                    tuple(
                        (point.output_tokens_per_s, point.latencies_ms[name][q])
                        for point in found.points
                        if name in point.latencies_ms
                    ),
                )
                for q in _QUANTILES
            ),
            is_log_y=True,
        )
        for name, title in names.items()
    ]


def _write(found: Sweep, folder: Path, *, has_png: bool) -> None:
    drawn = charts(found)
    header, rows = _rows(found)
    arguments = found.arguments
    line = f"prompts of {arguments['input_len']}, outputs of {arguments['output_len']} tokens"
    page = Page(
        title="octavo bench sweep",
        lines=[line, f"{arguments['num_prompts']} requests per point"],
        charts=drawn,
        tables=[Table("Points", header, rows)],
        notes=_reasons(found),
    )
    texts = {"sweep.json": to_json(found) + "\n", "sweep.csv": to_csv(found)}
    files.write_all(folder, {**texts, "sweep.html": to_html(page)})
    if has_png:
        files.write_png(folder / "sweep.png", drawn)
