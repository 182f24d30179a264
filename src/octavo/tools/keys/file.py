"""What the verbs of `octavo keys` share: which file, and how values are written on a command line."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from pathlib import Path
from typing import cast

from octavo.core.errors import ConfigError
from octavo.server.auth import key_file
from octavo.server.keys.rows import MAX_LIMIT, Limits
from octavo.server.keys.store import KeyStore
from octavo.tools.flags import server_config
from octavo.tools.parser import Parser, number

_SPAN = re.compile(r"(\d{1,9})([smhdw]?)")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def add_file_flags(parser: Parser) -> None:
    """Add the flags that name the key store, as the server has them."""
    parser.add_argument("--key-store", metavar="FILE", help="The key file.")
    parser.add_argument("--state-dir", metavar="FOLDER", help="The folder with keys.sqlite3 in it.")
    parser.add_argument("--config", metavar="FILE.yaml", help="The server's config file.")


def open_store(args: argparse.Namespace, *, create: bool = False) -> KeyStore:
    """The key store that the flags name.

    Raises:
        ConfigError: none is named, or it cannot be used.
    """
    path = key_file(server_config(args, "key_store", "state_dir"))
    if path is None:
        raise ConfigError(
            "no key store is named.",
            code="E-SEC-04",
            fix="Give --key-store FILE, or --state-dir FOLDER, as to the server.",
        )
    return KeyStore(Path(path), create=create)


def add_limit_flags(parser: Parser) -> None:
    """Add the flags for what a key may use."""
    whole = number(1, MAX_LIMIT, whole=True)
    for name, text in (
        ("rpm", "Most requests per minute."),
        ("tpm", "Most tokens per minute, prompts and outputs together."),
        ("concurrency", "Most generating calls at once."),
    ):
        parser.add_argument(f"--{name}", type=whole, metavar="N", help=f"{text} Default: no limit.")


def limits(args: argparse.Namespace) -> Limits:
    """The limits that the flags name."""
    given = [cast("int | None", getattr(args, name)) for name in ("rpm", "tpm", "concurrency")]
    return Limits(*given)


def span(text: str) -> int:
    """An argparse `type`: seconds, from `90`, `15m`, `12h`, `30d` or `2w`."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} given; expected a number of seconds, or one with s, m, h, d or w"
        )
    return int(found[1]) * _SECONDS[found[2]]


def moment(text: str) -> int:
    """An argparse `type`: Unix seconds of a span from now, or of an ISO date or time (UTC unless it says)."""
    if _SPAN.fullmatch(text):
        return int(time.time()) + span(text)
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} given; expected a span such as 30d, or a date such as 2030-01-31"
        ) from None
    return int((at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp())


def shown_time(seconds: int | None) -> str:
    """`2030-01-31 12:00` in UTC, or a dash."""
    if seconds is None:
        return "-"
    return f"{datetime.datetime.fromtimestamp(seconds, datetime.UTC):%Y-%m-%d %H:%M}"
