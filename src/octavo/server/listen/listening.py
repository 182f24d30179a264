"""The listening socket: one that a service manager passed, or one on the address of the config."""

from __future__ import annotations

import errno
import socket

from octavo.core import env
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError

BACKLOG = 2048


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket; its port is known at once, also for port 0. One that a service manager passed is taken.

    Raises:
        ConfigError: the address cannot be bound.
    """
    passed = env.listen_fd()
    if passed is not None:
        sock = socket.socket(fileno=passed)
        sock.setblocking(False)
        return sock
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((config.host, config.port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror or error}.",
            code="E-NET-01",
            fix=_bind_fix(error.errno),
        ) from error
    sock.listen(BACKLOG)
    sock.setblocking(False)
    return sock


def _bind_fix(number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return "Stop the process that has the port, or give another --port (0 takes a free one)."
    if number == errno.EACCES:
        return "Give a --port from 1024 up, or the right to use a lower one."
    return "Give an address of this machine as --host (0.0.0.0 listens on all)."


def host_of(sock: socket.socket) -> str | None:
    """The address that a socket listens on, whoever bound it; None for a Unix socket, which a file's mode protects."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return None
    host: str = sock.getsockname()[0]
    return host
