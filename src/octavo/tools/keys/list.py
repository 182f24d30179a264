"""`octavo keys list`: every key but the key itself."""

from __future__ import annotations

import argparse
import json
import time

import msgspec

from octavo.server.keys.rows import KeyRow
from octavo.tools import output
from octavo.tools.keys import file
from octavo.tools.parser import Parser
from octavo.tools.tables import table

_HEADER = ("id", "prefix", "name", "role", "tenant", "weight", "limits", "expires", "used", "state")


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    file.add_file_flags(parser)
    output.add_json_flag(parser)


def run(args: argparse.Namespace) -> int:
    """Show them."""
    with file.open_store(args) as store:
        rows = store.rows()
    now = time.time()
    output.show(args.json, lambda: _text(rows, now), lambda: _json(rows, now))
    return 0


def _text(rows: list[KeyRow], now: float) -> str:
    if not rows:
        return "no keys; `octavo keys create` makes one"
    return table(_HEADER, [_cells(row, now) for row in rows])


def _cells(row: KeyRow, now: float) -> tuple[str, ...]:
    names = ("rpm", "tpm", "at once")
    limits = [f"{most} {name}" for most, name in zip(row.limits, names, strict=True) if most]
    return (
        row.id,
        row.prefix,
        row.name,
        row.role,
        row.tenant,
        f"{row.weight:g}",
        ", ".join(limits) or "none",
        file.shown_time(row.expires),
        file.shown_time(row.used),
        row.state(now),
    )


def _json(rows: list[KeyRow], now: float) -> str:
    found = []
    for row in rows:
        fields = msgspec.to_builtins(row)
        del fields["hash"]  # of no use to anyone who may read this
        fields["limits"] = row.limits._asdict()
        found.append({**fields, "state": row.state(now)})
    return json.dumps({"keys": found}, indent=1)
