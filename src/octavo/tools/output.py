"""Where a verb's result goes: a table for people, JSON for programs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from octavo.core.errors import ConfigError


def add_json_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--json [FILE]`."""
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="Print JSON instead of the table; with FILE, write it there beside the table.",
    )


def show(target: str | None, text: Callable[[], str], json: Callable[[], str]) -> None:
    """Print the table, the JSON, or the table and a JSON file, as `--json` said.

    Raises:
        ConfigError: the file cannot be written.
    """
    if target == "-":
        print(json())
        return
    print(text())
    if target is None:
        return
    try:
        Path(target).expanduser().write_text(json() + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {target!r}: {error.strerror}.", code="E-FILE-01") from error
