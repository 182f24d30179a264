"""The only reader of the process environment. Secrets and third-party switches; everything else is a flag."""

from __future__ import annotations

import os

from octavo.core.errors import ConfigError, did_you_mean

LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
NAMES = ("OCTAVO_API_KEY", "OCTAVO_LOG_LEVEL", "OCTAVO_TEST_BUILD")
_FIRST_PASSED_FD = 3


def api_keys() -> tuple[str, ...]:
    """Keys from OCTAVO_API_KEY, comma-separated."""
    return tuple(key for key in os.environ.get("OCTAVO_API_KEY", "").split(",") if key)


def listen_fd() -> int | None:
    """The first listening socket that a service manager passed to this process (sd_listen_fds(3)), or None."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    return _FIRST_PASSED_FD if os.environ.get("LISTEN_FDS", "0") != "0" else None


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


def otlp_protocol() -> str:
    """OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: grpc or http/protobuf; empty: the endpoint says. OpenTelemetry's own reads others."""
    return os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "")


def is_test_build() -> bool:
    """Whether OCTAVO_TEST_BUILD is 1: requests may be broken on purpose here."""
    return os.environ.get("OCTAVO_TEST_BUILD") == "1"


def is_triton_interpreted() -> bool:
    """Whether TRITON_INTERPRET asks Triton to run kernels without a device. Triton reads it when it is imported."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on")
