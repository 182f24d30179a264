"""The only reader of the process environment. Secrets and third-party switches; everything else is a flag."""

from __future__ import annotations

import os

from octavo.core.errors import ConfigError, did_you_mean

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NAMES = ("OCTAVO_API_KEY", "OCTAVO_LOG_LEVEL", "OCTAVO_TEST_BUILD")


def api_keys() -> tuple[str, ...]:
    """Keys from OCTAVO_API_KEY, comma-separated."""
    return tuple(key for key in os.environ.get("OCTAVO_API_KEY", "").split(",") if key)


def log_level() -> str:
    """OCTAVO_LOG_LEVEL, default INFO.

    Raises:
        ConfigError: no such level.
    """
    given = os.environ.get("OCTAVO_LOG_LEVEL", "INFO")
    if given.upper() not in LOG_LEVELS:
        raise ConfigError(
            f"OCTAVO_LOG_LEVEL is {given!r}; expected one of {', '.join(LOG_LEVELS)}."
            f"{did_you_mean(given.upper(), LOG_LEVELS)}",
            code="E-CFG-08",
        )
    return given.upper()


def is_test_build() -> bool:
    """Whether OCTAVO_TEST_BUILD is 1: requests may be broken on purpose here."""
    return os.environ.get("OCTAVO_TEST_BUILD") == "1"
