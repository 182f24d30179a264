"""`octavo budget set`: what a key, a tenant, a feature or all may spend in a day or a month, and what happens then."""

from __future__ import annotations

import argparse
import re
import time

import msgspec

from octavo.core.errors import ConfigError
from octavo.server.auth import key_file
from octavo.server.costs.budget import ACTIONS, MAX_AMOUNT, PERIODS, Budget, Measure, Scope
from octavo.server.keys.store import KeyStore
from octavo.tools import ledger_file
from octavo.tools.flags import server_config
from octavo.tools.parser import Parser, number

_WHOSE = ("key", "tenant", "feature")
_AMOUNTS: tuple[Measure, ...] = ("money", "tokens", "device_hours")


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument(
        "name", metavar="NAME", help="What it is called; one of that name is replaced."
    )
    ledger_file.add_flags(parser)
    parser.add_argument(
        "--key",
        metavar="KEY",
        help="Of an API key: its id; its name or prefix, too, where the key store is in --state-dir or --config.",
    )
    parser.add_argument("--tenant", metavar="TEXT", help="Of a tenant, with all its keys.")
    parser.add_argument(
        "--feature",
        metavar="TEXT",
        help="Of what comes with this X-Octavo-Feature: anyone's, or with --key or --tenant theirs alone.",
    )
    for name, text in (
        ("money", "In the currency of --device-price."),
        ("tokens", "Of prompts and outputs together."),
        ("device-hours", "Of prefill, decode and what was aborted."),
    ):
        parser.add_argument(
            f"--{name}", type=number(0, MAX_AMOUNT), metavar="X", help=f"How much. {text}"
        )
    parser.add_argument(
        "--per",
        choices=PERIODS,
        default="month",
        help="From midnight UTC, of each day or first [month].",
    )
    parser.add_argument(
        "--action",
        choices=ACTIONS,
        default="refuse",
        help="At its end: warn in log and answers; throttle to one call at a time; refuse calls and end those that "
        "run [refuse].",
    )


def run(args: argparse.Namespace) -> int:
    """Keep it."""
    scopes = [name for name in _WHOSE if getattr(args, name) is not None]
    measures = [name for name in _AMOUNTS if getattr(args, name) is not None]
    has_both = args.key is not None and args.tenant is not None
    if has_both or len(measures) != 1:
        raise ConfigError(
            f"{' and '.join('--' + name for name in scopes) or 'no owner'} and {len(measures)} of --money, --tokens, "
            "--device-hours are given; expected --key or --tenant, not both, and one of the second.",
            code="E-COST-02",
            fix="Make a budget for each; without --key, --tenant and --feature it is everyone's.",
        )
    scope = msgspec.convert("+".join(scopes) or "all", Scope)
    values = [_key_id(args) if name == "key" else getattr(args, name) for name in scopes]
    budget = Budget(
        name=args.name,
        scope=scope,
        value=" ".join(values),
        measure=measures[0],
        amount=getattr(args, measures[0]),
        period=args.per,
        action=args.action,
        created=int(time.time()),
    )
    ledger = ledger_file.open_ledger(args, create=True)
    try:
        ledger.set_budget(budget)
        has_servers = ledger.has_lives()
    finally:
        ledger.close()
    if has_servers:
        print(f"budget {budget.name} counts on running servers within a few seconds")
    else:
        print(f"budget {budget.name} is kept in {ledger.name}, which no server has used yet")
    return 0


def _key_id(args: argparse.Namespace) -> str:
    """Of the key that --key means, where there is a store to look it up in.

    Raises:
        ConfigError: the store does not have it, so that the budget would be nobody's.
    """
    given = str(args.key)
    path = key_file(server_config(args, "state_dir"))
    # Keys of --api-key are in no store: 16 hexadecimal digits.
    if path is None or not path.exists() or re.fullmatch(r"[0-9a-f]{16}", given):
        return given
    with KeyStore(path) as keys:
        return keys.find(given).books_as
