"""`octavo budget remove`: a budget holds no more."""

from __future__ import annotations

import argparse

from octavo.core.errors import ConfigError
from octavo.tools import ledger_file
from octavo.tools.parser import Parser


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("name", metavar="NAME", help="Which one.")
    ledger_file.add_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Forget it."""
    ledger = ledger_file.open_ledger(args)
    try:
        is_gone = ledger.remove_budget(args.name)
    finally:
        ledger.close()
    if not is_gone:
        raise ConfigError(
            f"no budget {args.name!r}.", code="E-COST-02", fix="`octavo budget list` shows them."
        )
    print(f"budget {args.name} is removed; running servers follow within a few seconds")
    return 0
