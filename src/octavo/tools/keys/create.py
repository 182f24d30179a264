"""`octavo keys create`: make a key and print it, the only time that it can be seen."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.server.keys.rows import (
    MAX_WEIGHT,
    MIN_WEIGHT,
    ROLES,
    KeyRow,
    check_name,
    check_tenant,
)
from octavo.server.keys.store import KeyStore
from octavo.tools.keys import file
from octavo.tools.parser import Parser, number


def add_arguments(parser: Parser) -> None:
    """Add the verb's flags."""
    file.add_file_flags(parser)
    parser.add_argument("--name", required=True, metavar="TEXT", help="What the key is for.")
    parser.add_argument(
        "--role",
        choices=ROLES,
        default="user",
        help="user: call models; operator: also /metrics and /load; admin: also change the engine [user].",
    )
    parser.add_argument(
        "--tenant",
        metavar="TEXT",
        help="Whose it is; keys of one tenant share files, batches, cached prefixes and a fair share. "
        "Default: the key's own.",
    )
    parser.add_argument(
        "--weight",
        type=number(MIN_WEIGHT, MAX_WEIGHT),
        default=1.0,
        metavar="X",
        help="The tenant's share of a busy engine beside others' [1].",
    )
    file.add_limit_flags(parser)
    parser.add_argument(
        "--expires", type=file.moment, metavar="WHEN", help="30d, or 2030-01-31. Default: never."
    )


def run(args: argparse.Namespace) -> int:
    """Make the key."""
    now = int(time.time())
    if args.expires is not None and args.expires <= now:
        raise ConfigError(
            f"--expires is {file.shown_time(args.expires)} UTC, which is over.", code="E-SEC-05"
        )
    row = KeyRow(
        id="",
        hash=b"",
        prefix="",
        name=check_name(args.name),
        role=args.role,
        tenant="" if args.tenant is None else check_tenant(args.tenant),
        weight=args.weight,
        limits=file.limits(args),
        created=now,
        expires=args.expires,
    )
    with file.open_store(args, create=True) as store:
        tell(store.add(row), store)
    return 0


def tell(key: str, store: KeyStore) -> None:
    """Print a new key alone on standard output, so that a script can take it, and what to know of it beside."""
    print(
        f"Kept in {Path(store.path)} as a hash: this is the only time the key is shown.",
        file=sys.stderr,
    )
    print(key)
