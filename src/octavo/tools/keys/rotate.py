"""`octavo keys rotate`: a new key that may what the old one may; the old one goes, at once or later."""

from __future__ import annotations

import argparse
import sys
import time

from msgspec.structs import replace

from octavo.core.errors import ConfigError
from octavo.tools.keys import file
from octavo.tools.keys.create import tell
from octavo.tools.parser import Parser


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("key", metavar="KEY", help="Its id, prefix or name.")
    parser.add_argument(
        "--overlap",
        type=file.span,
        default=0,
        metavar="SPAN",
        help="How long the old key still opens: 15m, 12h, 7d [0].",
    )
    file.add_file_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Replace it."""
    now = int(time.time())
    with file.open_store(args) as store:
        row = store.find(args.key)
        state = row.state(now)
        if state != "active":
            raise ConfigError(
                f"key {row.id} is {state}.",
                code="E-SEC-06",
                fix="Make a new one with `octavo keys create`.",
            )
        key = store.rotate(replace(row, created=now), now + args.overlap)
        print(
            f"{row.id} ({row.prefix}...) is replaced; it opens until "
            f"{file.shown_time(now + args.overlap)} UTC.",
            file=sys.stderr,
        )
        tell(key, store)
    return 0
