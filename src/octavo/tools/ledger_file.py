"""Which ledger a verb means: the flags of the server that keeps it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from octavo.core.errors import ConfigError
from octavo.tools.flags import server_config
from octavo.tools.parser import Parser

if TYPE_CHECKING:
    from octavo.server.costs.store import LedgerStore


def add_flags(parser: Parser) -> None:
    """Add the flags that name the ledger, as the server has them."""
    parser.add_argument("--ledger-url", metavar="URL", help="sqlite:///FILE or postgresql://...")
    parser.add_argument("--state-dir", metavar="FOLDER", help="The folder with ledger.sqlite3.")
    parser.add_argument("--config", metavar="FILE.yaml", help="The server's config file.")


def open_ledger(args: argparse.Namespace, *, create: bool = False) -> LedgerStore:
    """The ledger that the flags name.

    Raises:
        ConfigError: none is named, or it cannot be used.
    """
    # lazy: the database's library takes a quarter of a second
    from octavo.server.costs.store import LedgerStore
    from octavo.tools.local import ledger_url

    url = ledger_url(server_config(args, "ledger_url", "state_dir"))
    if url is None:
        raise ConfigError(
            "no ledger is named.",
            code="E-COST-03",
            fix="Give --state-dir FOLDER or --ledger-url URL, as to the server.",
        )
    return LedgerStore(url, create=create)
