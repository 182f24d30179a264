"""`octavo plan`: what a model takes and does on a device, before anything is loaded. Needs neither the device nor torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError, MemoryPlanError
from octavo.tools import flags, output
from octavo.tools.parser import Parser, number
from octavo.tools.plan import breakeven, report
from octavo.tools.plan.changes import smallest_changes
from octavo.tools.plan.devices import DEVICES
from octavo.tools.plan.predict import MIXES, Fleet, Mix, parse_mix, predict
from octavo.tools.plan.report import Plan
from octavo.tools.plan.target import Given, Target, find, network_of, speed_of

FIELDS = (
    "runner",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "max_model_len",
    "max_num_seqs",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "enable_chunked_prefill",
    "performance_mode",
    "threads",
)
"""Flags of `octavo serve` that a plan depends on."""
MAX_MIXES = 16


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Model folder (config.json is enough), a config.json, or a bundled name; default: the bundled model.",
    )
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Read flags of `octavo serve` from a file."
    )
    plan = parser.add_argument_group("plan")
    names = ", ".join(DEVICES)
    plan.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help=f"What it is to run on: cpu (this machine's), {names}; auto: what this machine has [auto].",
    )
    plan.add_argument(
        "--memory-gib",
        type=number(0.001, 1e6),
        metavar="X",
        help="Memory of the device, instead of its row's; of cpu: what is available.",
    )
    plan.add_argument(
        "--read-gb-s",
        type=number(0.001, 1e6),
        metavar="X",
        help="10^9 bytes per second that its memory is read with; with --tflops.",
    )
    plan.add_argument(
        "--tflops",
        type=number(1e-6, 1e6),
        metavar="X",
        help="10^12 operations per second of products; with --read-gb-s.",
    )
    plan.add_argument(
        "--tp",
        "--tensor-parallel-size",
        dest="tp",
        type=number(1, 1024, whole=True),
        default=1,
        metavar="N",
        help="Devices over which every layer is divided [1]; more than one is planned, and not run by this build.",
    )
    plan.add_argument(
        "--replicas",
        type=number(1, 4096, whole=True),
        default=1,
        metavar="N",
        help="Servers of the model [1].",
    )
    plan.add_argument(
        "--mix",
        nargs="+",
        metavar="PROMPT/OUTPUT",
        help="Lengths of requests, in tokens, instead of the three typical ones.",
    )
    plan.add_argument(
        "--device-price",
        type=number(0, 1e6),
        metavar="X",
        help="Of one device per hour: adds the cost per million tokens.",
    )
    plan.add_argument(
        "--break-even",
        metavar="PRICES.yaml",
        help="Price list of offers: adds from which load on the device is cheaper.",
    )
    output.add_json_flag(parser)
    flags.add_fields(parser.add_argument_group("engine"), EngineConfig, FIELDS)


def run(args: argparse.Namespace) -> int:
    """Print the plan: 1 when it does not fit."""
    plan = make(args)
    output.show(args.json, lambda: report.to_text(plan), lambda: report.to_json(plan))
    return int(not plan.fits)


def make(args: argparse.Namespace) -> Plan:
    """The plan that a command line asks for.

    Raises:
        OperatorError: a bad flag, model or price list.
    """
    prices = breakeven.read_prices(args.break_even) if args.break_even else None
    price = args.device_price
    if price is None and prices is not None:
        price = prices.device_price
        if price is None:
            raise ConfigError(
                "--break-even needs what the own device costs.",
                code="E-PLAN-04",
                fix="Give --device-price (per device and hour), or device_price in the file.",
            )
    memory = None if args.memory_gib is None else int(args.memory_gib * (1 << 30))
    target = find(args.device, Given(memory, args.read_gb_s, args.tflops), args.tp)
    fleet = Fleet(args.replicas, args.tp, price)
    plan = plan_for(_config(args, target), target, fleet, _mixes(args.mix))
    if prices is None or not plan.predictions:
        return plan
    lines = breakeven.lines(
        prices,
        plan.predictions,
        num_devices=plan.topology.devices,
        device_price=fleet.device_price or 0.0,
    )
    return replaced(plan, break_even=lines, currency=prices.currency)


def plan_for(
    config: EngineConfig, target: Target, fleet: Fleet, mixes: tuple[Mix, ...] = MIXES
) -> Plan:
    """The plan of a config on a device.

    Raises:
        OperatorError: it cannot work, for another reason than memory.
    """
    common: dict[str, Any] = {
        "model": config.model,
        "device": target.name,
        "notes": report.notes_of(target, fleet),
        "topology": report.topology_of(fleet),
        "available_bytes": target.available,
    }
    try:
        resolved = target.resolve(config)
    except MemoryPlanError as error:
        changes = smallest_changes(config, target)
        return Plan(fits=False, why_not=error.message, changes=changes, **common)
    network = network_of(resolved)
    common |= report.memory_of(resolved, network)
    speed = speed_of(target, resolved, network)
    return Plan(
        fits=True,
        ceilings=report.ceilings_of(target, speed),
        predictions=tuple(predict(resolved, speed, network, mix, fleet) for mix in mixes),
        **common,
    )


def replaced(plan: Plan, **changes: Any) -> Plan:
    """`plan` with some fields changed."""
    # lazy: nothing else here needs it
    from msgspec.structs import replace

    return replace(plan, **changes)


def _mixes(texts: list[str] | None) -> tuple[Mix, ...]:
    if texts is None:
        return MIXES
    if len(texts) > MAX_MIXES:
        raise ConfigError(f"{len(texts)} mixes given; expected at most {MAX_MIXES}.", param="mix")
    return tuple(map(parse_mix, texts))


def _config(args: argparse.Namespace, target: Target) -> EngineConfig:
    known = {flag.field for flag in flags.flags_of(EngineConfig)}
    values = flags.read_config_file(args.config) if args.config else {}
    values = {key: value for key, value in values.items() if key in known and key != "device"}
    values |= {field: getattr(args, field) for field in FIELDS if hasattr(args, field)}
    if args.model is not None:
        values["model"] = _folder(args.model)
    return flags.build(EngineConfig, values | {"device": target.kind})


def _folder(name: str) -> str:
    """A model's folder; a config.json stands for the one that it is in."""
    path = Path(name).expanduser()
    return str(path.parent) if path.name == "config.json" and path.is_file() else name
