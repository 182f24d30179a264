"""Logging: one line per fact, to standard error, never a secret and never a prompt."""

from __future__ import annotations

import logging
import sys

from octavo.core import env

_FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


def get_logger(name: str) -> logging.Logger:
    """The logger of a module: `logger = get_logger(__name__)`."""
    return logging.getLogger(name)


def configure(level: str | None = None) -> None:
    """Send the project's log lines to standard error. Called once by each process entry point."""
    root = logging.getLogger("octavo")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter(_FORMAT, datefmt="%H:%M:%S"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(level or env.log_level())
