"""`octavo tune`: flags of `octavo serve` for a traffic and an SLO, by simulation first and then by short live runs."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import yaml

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.tools import flags, output
from octavo.tools.bench import sample, serve
from octavo.tools.parser import Parser, number
from octavo.tools.plan.devices import DEVICES
from octavo.tools.plan.target import Given, find
from octavo.tools.plots import files
from octavo.tools.started import FIELDS
from octavo.tools.tune import report, traffic
from octavo.tools.tune.candidates import DEFAULTS
from octavo.tools.tune.report import Report
from octavo.tools.tune.slo import Asked, slo_of
from octavo.tools.tune.task import Task
from octavo.tools.tune.traffic import Job, Shape
from octavo.tools.tune.tuning import tune


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("model", nargs="?", metavar="MODEL", help="As for `octavo serve`.")
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Read flags of `octavo serve` from a file."
    )
    _add_traffic(parser)
    asked = parser.add_argument_group("objectives")
    for name, what in (("ttft", "first token"), ("itl", "time between two tokens")):
        asked.add_argument(
            f"--{name}-p99-ms",
            type=number(0.001, 1e7),
            metavar="X",
            help=f"Most milliseconds of the 99th percentile of the {what}.",
        )
    asked.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="Objectives of each request, such as ttft:500 tpot:50 e2el:5000, which 99 %% are to meet.",
    )
    how = parser.add_argument_group("search")
    how.add_argument(
        "--device",
        metavar="NAME",
        help=f"Simulate this device by its roofline, and start nothing: cpu, {', '.join(DEVICES)}; default: measure here.",
    )
    how.add_argument(
        "--device-price",
        type=number(1e-6, 1e6),
        metavar="X",
        help="Of the device per hour; without it costs are in device-hours.",
    )
    seconds = number(1, 3600)
    how.add_argument(
        "--calibration-seconds",
        type=seconds,
        default=15.0,
        metavar="S",
        help="How long steps are measured [15].",
    )
    how.add_argument(
        "--live-seconds",
        type=number(0, 3600),
        default=15.0,
        metavar="S",
        help="Traffic of each live run; 0: none [15].",
    )
    how.add_argument(
        "--live-candidates",
        type=number(1, 16, whole=True),
        default=2,
        metavar="N",
        help="Live runs: of the best, the defaults, and the next [2].",
    )
    how.add_argument(
        "--tolerance",
        type=number(0.01, 1),
        default=0.2,
        metavar="X",
        help="Share by which simulated and live goodput and median times may differ; beyond it the result is UNCONFIRMED "
        "[0.2].",
    )
    files.add_arguments(parser)
    output.add_json_flag(parser)
    flags.add_fields(parser.add_argument_group("engine: given ones are kept"), EngineConfig, FIELDS)


def _add_traffic(parser: Parser) -> None:
    load = parser.add_argument_group("traffic")
    load.add_argument(
        "--trace",
        metavar="FILE.jsonl",
        help="Lines {timestamp, prompt_len, output_len}, and maybe prefix_id and prefix_len.",
    )
    load.add_argument(
        "--from-step-log", metavar="FOLDER", help="What a server's --step-log has, instead."
    )
    load.add_argument(
        "--request-rate", type=number(1e-3, 1e5), metavar="X", help="Arrivals per second, instead."
    )
    lengths = "N, LOW-HIGH, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"
    load.add_argument("--input-len", default="128", metavar="DIST", help=f"{lengths} [128].")
    load.add_argument("--output-len", default="64", metavar="DIST", help=f"{lengths} [64].")
    serve.add_spread_flags(load)
    load.add_argument(
        "--prefix-len",
        type=number(0, sample.MAX_LENGTH, whole=True),
        default=0,
        metavar="N",
        help="Leading tokens of each prompt that it shares with others [0].",
    )
    load.add_argument(
        "--num-prefixes",
        type=number(1, 1 << 16, whole=True),
        default=1,
        metavar="N",
        help="Different ones of these [1].",
    )
    load.add_argument(
        "--num-prompts",
        type=number(20, traffic.MAX_REQUESTS, whole=True),
        default=300,
        metavar="N",
        help="Requests that are simulated, at most [300].",
    )
    load.add_argument(
        "--seed",
        type=number(0, whole=True),
        default=0,
        metavar="N",
        help="Of all that is drawn [0].",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb: 1 where the SLO is not met, or live runs gave something else than the simulation."""
    objectives = serve.parse_objectives(args.goodput)
    if args.ttft_p99_ms is None and args.itl_p99_ms is None and not objectives:
        raise ConfigError(
            "nothing is asked for.",
            fix="Give --ttft-p99-ms and --itl-p99-ms, or --goodput, such as ttft:500 tpot:50.",
        )
    jobs = jobs_of(args)
    values, config = _engine(args)
    folder = files.prepare(args)
    task = Task(
        config=config,
        values=values,
        jobs=jobs,
        slo=slo_of(Asked(args.ttft_p99_ms, args.itl_p99_ms, objectives)),
        target=None if args.device is None else find(args.device, Given()),
        price=args.device_price,
        calibration_s=args.calibration_seconds,
        live_s=args.live_seconds,
        live_candidates=args.live_candidates,
        tolerance=args.tolerance,
        seed=args.seed,
    )
    found = tune(task, lambda text: print(f"... {text}", file=sys.stderr, flush=True))
    output.show(args.json, lambda: report.to_text(found), lambda: report.to_json(found))
    if folder is not None:
        _write(found, folder, has_png=not args.no_png)
        print(f"written to {folder}", file=sys.stderr)
    return int(not found.is_met or found.is_confirmed is False)


def jobs_of(args: argparse.Namespace) -> list[Job]:
    """The traffic that a command line says.

    Raises:
        ConfigError: none, more than one, or one that cannot be used.
    """
    given = [
        name
        for name in ("trace", "from_step_log", "request_rate")
        if getattr(args, name) is not None
    ]
    if len(given) != 1:
        raise ConfigError(
            f"{len(given)} of --trace, --from-step-log and --request-rate are given; expected one.",
            code="E-FLAG-02",
            fix="For example --request-rate 4 --input-len 200-800 --output-len 64-256.",
        )
    most = args.num_prompts
    if args.trace is not None:
        jobs = traffic.read_trace(args.trace, most)
    elif args.from_step_log is not None:
        jobs = traffic.read_step_log(args.from_step_log, most)
    else:
        shape = Shape(
            rate=args.request_rate,
            inputs=sample.parse_lengths(args.input_len),
            outputs=sample.parse_lengths(args.output_len),
            arrival=args.arrival,
            burst=args.burst,
            prefix_len=args.prefix_len,
            num_prefixes=args.num_prefixes,
        )
        jobs = traffic.draw(shape, most, args.seed)
    if math.isinf(traffic.rate_of(jobs)):
        raise ConfigError(
            f"all {len(jobs)} requests come at once; expected arrivals over time.",
            fix="Give them timestamps that differ.",
        )
    return jobs


def _engine(args: argparse.Namespace) -> tuple[dict[str, object], EngineConfig]:
    """What was given to the server, and the engine's part of it with defaults."""
    values = flags.read_config_file(args.config) if args.config else {}
    values |= {field: getattr(args, field) for field in FIELDS if hasattr(args, field)}
    if args.model is not None:
        values["model"] = args.model
    config = flags.build(EngineConfig, values)
    known = {flag.field for flag in flags.flags_of(EngineConfig)}
    return {k: getattr(config, k) if k in known else v for k, v in values.items()}, config


def _write(found: Report, folder: Path, *, has_png: bool) -> None:
    charts = report.charts(found, DEFAULTS, found.flags or DEFAULTS)
    head = f"# Flags of `octavo serve`, as found by `octavo tune`.\n# {found.verdict}\n"
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in found.recommended.items()}
    files.write_all(
        folder,
        {
            "tune.json": report.to_json(found) + "\n",
            "tune.csv": report.to_csv(found),
            "tune.html": report.page(found, charts),
            "serve.yaml": head + (yaml.safe_dump(plain, sort_keys=False) if plain else ""),
        },
    )
    if has_png:
        files.write_png(folder / "tune.png", charts)
