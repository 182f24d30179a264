"""Who can reach the server, and refusals to start where that would be everybody."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.server.auth import key_file
from octavo.server.listen.listening import host_of


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can connect to an address. Of names, only localhost is known to."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def asks_for_key(config: ServerConfig, named: Sequence[str]) -> bool:
    """Whether callers need a key; `named` are those of OCTAVO_API_KEY."""
    path = key_file(config)
    has_store = config.key_store is not None or (path is not None and path.exists())
    return has_store or any(key.strip() for key in (*config.api_key, *named))


def check_exposure(
    config: ServerConfig, named: Sequence[str], sock: socket.socket | None = None
) -> None:
    """Refuse to serve the whole network without a key. `sock` is the socket, where another process bound it.

    Raises:
        ConfigError: E-SEC-01.
    """
    host = config.host if sock is None else host_of(sock)
    if host is None or is_loopback(host) or config.allow_open or asks_for_key(config, named):
        return
    what = f"--host {host}" if sock is None else f"the listening socket, on {host},"
    raise ConfigError(
        f"{what} lets other machines in, and no API key is asked for: anyone could use this server.",
        code="E-SEC-01",
        fix="Set OCTAVO_API_KEY, or make keys with `octavo keys create` and name them with --key-store; or listen on "
        "127.0.0.1; or, where something else keeps strangers out, add --allow-open.",
    )
