"""`octavo bench serve`: load any OpenAI-compatible server and report what its clients would see.

A run whose numbers do not mean what they seem to is stamped INVALID, with the reasons, and exits
1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import secrets
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from octavo.core import env
from octavo.core.errors import ConfigError, OctavoError, did_you_mean
from octavo.tools import openai_client, output
from octavo.tools.bench import report, sample
from octavo.tools.bench.drive import Load, Outcome, drive, send
from octavo.tools.bench.environment import environment
from octavo.tools.bench.sample import Work
from octavo.tools.bench.validity import Declared
from octavo.tools.openai_client import OpenAIClient, first_model
from octavo.tools.parser import Parser, number

OBJECTIVES = ("ttft", "tpot", "e2el")


class Plan(NamedTuple):
    """The work of a run, and whether its arrivals are spread over time."""

    work: list[Work]
    is_rate_limited: bool


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    where = parser.add_argument_group("server")
    where.add_argument(
        "--url", "--base-url", default="http://127.0.0.1:8000", help="Its address [%(default)s]."
    )
    where.add_argument("--model", help="Model name; default: the first that the server lists.")
    add_call_flags(where)
    _add_arrival_flags(parser)
    add_request_flags(parser)
    add_judgement_flags(parser)
    output.add_json_flag(parser)


def add_call_flags(where: argparse._ArgumentGroup) -> None:
    """Add what says how a server is called."""
    where.add_argument("--api-key", help="Key to send; also OCTAVO_API_KEY.")
    where.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="Which API to drive [%(default)s].",
    )
    where.add_argument(
        "--timeout",
        type=number(0.1),
        default=600.0,
        metavar="S",
        help="Longest silence within an answer [600].",
    )


def add_spread_flags(load: argparse._ArgumentGroup) -> None:
    """Add what says how arrivals lie in time, at one rate."""
    load.add_argument(
        "--arrival",
        choices=("poisson", "constant"),
        default="poisson",
        help="How arrivals are spread [%(default)s].",
    )
    load.add_argument(
        "--burst",
        type=number(1, 1 << 20, whole=True),
        default=1,
        metavar="N",
        help="Arrivals come N at a time [1].",
    )


def add_judgement_flags(parser: Parser) -> None:
    """Add what a run is judged by."""
    judged = parser.add_argument_group("judgement")
    judged.add_argument(
        "--goodput",
        nargs="+",
        default=[],
        metavar="NAME:MS",
        help="Objectives, such as ttft:500 tpot:50 e2el:5000.",
    )
    judged.add_argument(
        "--warm-cache", action="store_true", help="Declare that prompts may be cached."
    )
    judged.add_argument(
        "--allow-short", action="store_true", help="Declare that outputs may end early."
    )


def _add_arrival_flags(parser: Parser) -> None:
    load = parser.add_argument_group("arrivals")
    count = number(1, 1 << 20, whole=True)
    load.add_argument("--num-prompts", type=count, default=100, metavar="N", help="Requests [100].")
    load.add_argument(
        "--request-rate",
        type=number(0),
        default=math.inf,
        metavar="X",
        help="Arrivals per second; inf sends all at once [inf].",
    )
    add_spread_flags(load)
    load.add_argument("--max-concurrency", type=count, metavar="N", help="Most requests in flight.")


def add_request_flags(parser: Parser) -> None:
    """Add what says how requests look."""
    load = parser.add_argument_group("requests")
    lengths = "N, uniform:LOW:HIGH or lognormal:MEDIAN:SIGMA"
    load.add_argument("--input-len", default="128", metavar="DIST", help=f"{lengths} [128].")
    load.add_argument("--output-len", default="64", metavar="DIST", help=f"{lengths} [64].")
    load.add_argument(
        "--prompts",
        choices=("tokens", "words"),
        help="Random token ids (exact lengths) or words; default: tokens, and words for chat.",
    )
    load.add_argument(
        "--trace",
        metavar="FILE.jsonl",
        help="Lines {timestamp?, prompt | prompt_len, output_len} instead of random lengths.",
    )
    load.add_argument(
        "--num-warmups",
        type=number(0, 1000, whole=True),
        default=2,
        metavar="N",
        help="Requests sent and forgotten beforehand [2].",
    )
    load.add_argument(
        "--temperature", type=number(0), default=0.0, metavar="X", help="Of sampling [0]."
    )
    load.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Ask for outputs of full length [on].",
    )
    load.add_argument(
        "--extra-body", default="{}", metavar="JSON", help="More fields for every request."
    )
    load.add_argument(
        "--seed",
        type=number(0, whole=True),
        metavar="N",
        help="Of lengths, arrivals and prompts; default: a fresh one, so that no cache is warm.",
    )


def run(args: argparse.Namespace) -> int:
    """Run the verb: 0 for a valid run, 1 for an INVALID one."""
    objectives = parse_objectives(args.goodput)
    if args.seed is None:
        args.seed = secrets.randbits(32)
    plan = make_plan(args)
    made = asyncio.run(measure(args, plan, objectives))
    output.show(args.json, lambda: report.to_text(made), lambda: report.to_json(made))
    return 0 if made.valid else 1


def parse_objectives(texts: Sequence[str]) -> dict[str, float]:
    """`["ttft:500"]` -> `{"ttft": 500.0}`.

    Raises:
        ConfigError: not a known name and a positive number of milliseconds.
    """
    objectives: dict[str, float] = {}
    for text in texts:
        name, _, limit = text.partition(":")
        try:
            value = float(limit)
        except ValueError:
            value = math.nan
        if name not in OBJECTIVES or not value > 0:
            raise ConfigError(
                f"--goodput {text!r}; expected NAME:MILLISECONDS with a name of "
                f"{', '.join(OBJECTIVES)}.{did_you_mean(name, OBJECTIVES)}",
                fix="For example --goodput ttft:500 tpot:50.",
            )
        objectives[name] = value
    return objectives


def make_plan(args: argparse.Namespace) -> Plan:
    """What to send and when.

    Raises:
        ConfigError: a bad length, rate or trace.
    """
    if args.request_rate == 0:
        raise ConfigError("--request-rate is 0; expected a positive number or inf.")
    rng = random.Random(args.seed)
    kind: sample.PromptKind = args.prompts or ("words" if args.endpoint == "chat" else "tokens")
    if kind == "tokens" and args.endpoint == "chat":
        raise ConfigError("--prompts tokens with --endpoint chat.", fix="Use --prompts words.")
    is_spread = not math.isinf(args.request_rate)
    if args.trace:
        work, is_timed = sample.read_trace(args.trace, kind=kind, rng=rng)
        if is_timed:
            return Plan(work, True)
        times = _arrivals(args, len(work), rng)
        return Plan([w._replace(at=at) for w, at in zip(work, times, strict=True)], is_spread)
    inputs = sample.parse_lengths(args.input_len)
    outputs = sample.parse_lengths(args.output_len)
    times = _arrivals(args, args.num_prompts, rng)
    return Plan(sample.random_work(inputs, outputs, times, kind=kind, rng=rng), is_spread)


def _arrivals(args: argparse.Namespace, count: int, rng: random.Random) -> list[float]:
    return sample.arrivals(count, args.request_rate, kind=args.arrival, burst=args.burst, rng=rng)


async def measure(
    args: argparse.Namespace, plan: Plan, objectives: dict[str, float]
) -> report.Report:
    """One run against the server at `args.url`."""
    key = args.api_key or next(iter(env.api_keys()), None)
    async with openai_client.connect(args.url, api_key=key, timeout_s=args.timeout) as client:
        model = args.model or await first_model(client)
        load = Load(
            path=openai_client.CHAT if args.endpoint == "chat" else openai_client.COMPLETIONS,
            work=plan.work,
            max_concurrency=args.max_concurrency,
            body=_common_body(args, model),
        )
        where = environment() | {"server": await _server_version(client), "model": model}
        await _warm_up(client, load, args)
        outcome = await drive(client, load)
    return _report(args, plan, outcome, objectives, where)


def _report(
    args: argparse.Namespace,
    plan: Plan,
    outcome: Outcome,
    objectives: dict[str, float],
    where: dict[str, object],
) -> report.Report:
    arguments = {
        key: str(value) if value == math.inf else value
        for key, value in vars(args).items()
        if key != "api_key"
    }
    return report.make(
        outcome.records,
        outcome.client,
        Declared(
            warm_cache=args.warm_cache,
            allow_short=args.allow_short,
            is_rate_limited=plan.is_rate_limited,
        ),
        repeated_share=sample.repeated_share([work.prompt for work in plan.work]),
        objectives_ms=objectives,
        origin=report.Origin(arguments, where),
    )


def _common_body(args: argparse.Namespace, model: str) -> dict[str, object]:
    try:
        extra: dict[str, Any] = msgspec.json.decode(args.extra_body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--extra-body {args.extra_body!r}: {error}.") from error
    ignore = {"ignore_eos": True} if args.ignore_eos else {}
    return {"model": model, "temperature": args.temperature, **ignore, **extra}


async def _server_version(client: OpenAIClient) -> str:
    with contextlib.suppress(OctavoError):  # other servers need not have /version
        return (await client.get("/version")).decode("utf-8", "replace")[:200]
    return "unknown"


async def _warm_up(client: OpenAIClient, load: Load, args: argparse.Namespace) -> None:
    """Requests of the same shape and other content, one by one, outside the measurement."""
    rng = random.Random(~args.seed)
    first = load.work[0]
    length = len(first.prompt) if isinstance(first.prompt, tuple) else len(first.prompt.split())
    make = sample.random_tokens if isinstance(first.prompt, tuple) else sample.random_words
    works = [Work(make(max(1, length), rng), first.output_len, 0) for _ in range(args.num_warmups)]
    for index in range(len(works)):
        record = await send(client, load._replace(work=works), index, start=0.0, due=0.0)
        if record.error is not None:
            print(f"warm-up failed: {record.error}", file=sys.stderr)
