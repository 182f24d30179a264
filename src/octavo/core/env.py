"""The only reader of the process environment. Secrets and third-party switches; everything else is a flag."""

from __future__ import annotations

import os

NAMES = ("OCTAVO_API_KEY", "OCTAVO_LOG_LEVEL")


def api_keys() -> tuple[str, ...]:
    """Keys from OCTAVO_API_KEY, comma-separated."""
    return tuple(key for key in os.environ.get("OCTAVO_API_KEY", "").split(",") if key)


def log_level() -> str:
    """OCTAVO_LOG_LEVEL, default INFO."""
    return os.environ.get("OCTAVO_LOG_LEVEL", "INFO").upper()
