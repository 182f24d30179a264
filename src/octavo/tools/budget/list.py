"""`octavo budget list`: every budget, and what is used of it in its period."""

from __future__ import annotations

import argparse
import json
import time

import msgspec

from octavo.server.costs.budget import Budget
from octavo.server.costs.budgets import total
from octavo.tools import ledger_file, output
from octavo.tools.parser import Parser
from octavo.tools.tables import table

_HEADER = ("name", "of", "amount", "measure", "per", "action", "used", "share")


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    ledger_file.add_flags(parser)
    output.add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    ledger = ledger_file.open_ledger(args)
    try:
        found = [
            (budget, total(budget, ledger.used(budget, time.time()))) for budget in ledger.budgets()
        ]
    finally:
        ledger.close()
    rows = [
        {**msgspec.to_builtins(budget), "used": used, "share": used / budget.amount}
        for budget, used in found
    ]
    output.show(args.json, lambda: _text(found), lambda: json.dumps({"budgets": rows}, indent=1))
    return 0


def _text(found: list[tuple[Budget, float]]) -> str:
    if not found:
        return "no budgets; `octavo budget set` makes one"
    rows = [
        (
            budget.name,
            ", ".join(" ".join(one) for one in budget.whose.items()) or "all",
            f"{budget.amount:g}",
            budget.measure,
            budget.period,
            budget.action,
            f"{used:.6g}",
            f"{100 * used / budget.amount:.1f} %",
        )
        for budget, used in found
    ]
    return table(_HEADER, rows)
