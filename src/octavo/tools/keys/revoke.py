"""`octavo keys revoke`: a key opens nothing any more, on running servers within a second."""

from __future__ import annotations

import argparse
import time

from octavo.tools.keys import file
from octavo.tools.parser import Parser


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    parser.add_argument("key", metavar="KEY", help="Its id, prefix or name.")
    file.add_file_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Revoke it. Calls that are under way with it go on to their end."""
    with file.open_store(args) as store:
        row = store.find(args.key)
        store.revoke(row.id, int(time.time()))
    print(f"revoked {row.id} ({row.prefix}..., {row.name!r} of {row.tenant})")
    return 0
