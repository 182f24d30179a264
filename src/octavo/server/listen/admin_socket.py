"""The Unix socket whose callers are admins: whoever may open the file, which is its owner alone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError

FILE = "admin.sock"
"""Its name in a --state-dir."""
_MAX_PATH = 107 - len(".new")  # sun_path, unix(7), less the final zero
_BACKLOG = 16


def admin_path(config: ServerConfig) -> Path | None:
    """Where the socket is to be; None: there is none, as where a --state-dir has too long a name for one."""
    if config.admin_socket is not None:
        return Path(config.admin_socket).expanduser()
    if config.state_dir is None:
        return None
    path = Path(config.state_dir).expanduser() / FILE
    return path if _fits(path) else None


def _fits(path: Path) -> bool:
    return len(os.fsencode(path.absolute())) <= _MAX_PATH


class AdminSocket:
    """A listening socket of mode 0600. It takes the place of one that a former server left, in one step.

    Raises:
        ConfigError: E-NET-02: no socket can be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        if not _fits(self.path):
            size = len(os.fsencode(self.path))
            raise self._bad(f"its path has {size} bytes; at most {_MAX_PATH} fit")
        if self.path.exists() and not self.path.is_socket():
            raise self._bad("there is a file of another kind")
        fresh = self.path.with_name(self.path.name + ".new")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fresh.unlink(missing_ok=True)
            self.sock.bind(str(fresh))
            os.chmod(fresh, 0o600)  # before it listens: until then nobody can connect
            self.sock.listen(_BACKLOG)
            fresh.rename(self.path)
        except OSError as error:
            self.sock.close()
            raise self._bad(error.strerror or str(error)) from error
        self.sock.setblocking(False)
        self._inode = self.path.stat().st_ino

    def _bad(self, reason: str) -> ConfigError:
        return ConfigError(
            f"admin socket {str(self.path)!r}: {reason}.",
            code="E-NET-02",
            fix="Give another --admin-socket.",
        )

    @property
    def is_in_place(self) -> bool:
        """Whether callers find this one, and not that of a later server or none."""
        with contextlib.suppress(FileNotFoundError):
            return self.path.stat().st_ino == self._inode
        return False

    def remove(self) -> None:
        """Take the file away, unless a later server has its own there."""
        self.sock.close()
        if self.is_in_place:
            self.path.unlink(missing_ok=True)


class AdminPlace:
    """Where a server has its admin socket while it has its place; `path` None: nowhere. Owner: the server."""

    def __init__(self, path: Path | None, protocol: Callable[[], asyncio.Protocol]) -> None:
        self.server: asyncio.Server | None = None
        self._path = path
        self._protocol = protocol
        self._socket: AdminSocket | None = None

    def bind(self) -> None:
        """Take the place; callers wait. Raises ConfigError."""
        if self._path is not None:
            self._socket = AdminSocket(self._path)

    async def listen(self) -> list[asyncio.Server]:
        """Answer; what does, if there is a place."""
        if self._socket is None:
            return []
        if self.server is not None:
            self.server.close()
        loop = asyncio.get_running_loop()
        self.server = await loop.create_unix_server(self._protocol, sock=self._socket.sock)
        return [self.server]

    async def take_back(self) -> list[asyncio.Server]:
        """As `listen`, anew where somebody else has taken the place. Raises ConfigError."""
        if self._socket is None or self._socket.is_in_place:
            return []
        self.bind()
        return await self.listen()

    def leave(self) -> None:
        """Nothing of this server is left there."""
        if self._socket is not None:
            self._socket.remove()
