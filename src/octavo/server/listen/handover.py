"""A server's listening socket goes to its successor, so that a restart refuses and resets no connection.

The server that has a port offers it on a Unix socket in a private folder. The successor (`octavo serve --takeover`)
gets a copy of the listening socket at once, loads its model while the old one serves, and then they change places:

    successor                     server
    connects               ->
                           <-     the listening socket (SCM_RIGHTS)
    READY                  ->     stops accepting, gives up what only one may have (the state folder's lock)
                           <-     YOURS
    SERVING                ->     finishes its calls and ends
                           <-     the end of the connection: it is gone

Connections that come between the two wait in the socket's backlog. A successor that goes away before it says SERVING
changes nothing: the server goes on, or takes its place again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from octavo.core.errors import ConfigError
from octavo.core.log import get_logger

logger = get_logger(__name__)

_HELLO = b"octavo handover 1\n"
_READY = b"ready\n"
_YOURS = b"yours\n"
_SERVING = b"serving\n"
_MAX_PATH = 107
"""Bytes of a Unix socket's path, unix(7)."""
_PEERCRED = struct.Struct("3i")
_ASK_S = 30.0
"""Longest wait for a server's hello: one that runs sends it at once, unless it is handing over to another."""
_CHANGE_S = 30.0
"""Longest time from YOURS to SERVING: a server that starts has loaded its model by then."""

Hook = Callable[[], Awaitable[None]]


def offer_path(host: str, port: int) -> Path:
    """Where the server on an address offers its socket to this user's other processes."""
    name = f"{host}-{port}.sock"
    home = Path(tempfile.gettempdir()) / f"octavo-{os.getuid()}"
    if len(os.fsencode(home / name)) > _MAX_PATH:
        home = Path("/tmp") / home.name
    return home / name


class Offer:
    """The server's side: whoever of the same user asks may have `sock`, which it owns. Owner: the server's event loop.

    `leave` stops accepting and gives up what only one server may have; `stay` takes it back when the successor fails;
    `left` is called once the successor serves.

    Raises:
        OSError: the folder or the socket cannot be made, or belongs to somebody else.
    """

    def __init__(
        self, path: Path, sock: socket.socket, leave: Hook, stay: Hook, left: Hook
    ) -> None:
        self._path = path
        self._sock = sock
        self._leave, self._stay, self._left = leave, stay, left
        self._connections: list[socket.socket] = []
        try:
            self._listener = _listen(path)
        except OSError:
            sock.close()
            raise
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Offer nothing more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._stop_listening()
        self._sock.close()
        for connection in self._connections:
            connection.close()

    def _stop_listening(self) -> None:
        if self._listener.fileno() >= 0:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._listener.fileno() >= 0:
            connection, _ = await loop.sock_accept(self._listener)
            self._connections.append(connection)
            # A successor that breaks off is no trouble of this server.
            with contextlib.suppress(OSError):
                if _is_same_user(connection) and await self._hand_over(connection):
                    return  # the connection ends with this process
            connection.close()

    async def _hand_over(self, connection: socket.socket) -> bool:
        """Whether the successor serves now."""
        loop = asyncio.get_running_loop()
        socket.send_fds(connection, [_HELLO], [self._sock.fileno()])
        logger.info("a successor has asked for the port; serving until it is ready")
        if await loop.sock_recv(connection, len(_READY)) != _READY:
            logger.warning("the successor went away before it was ready; nothing changes")
            return False
        self._stop_listening()  # the successor offers the port from now on
        await self._leave()
        try:
            await loop.sock_sendall(connection, _YOURS)
            answer = await asyncio.wait_for(loop.sock_recv(connection, len(_SERVING)), _CHANGE_S)
        except (OSError, TimeoutError):
            answer = b""
        if answer == _SERVING:
            await self._left()
            return True
        logger.error("the successor failed while it took over; this server goes on")
        await self._stay()
        self._listener = _listen(self._path)
        return False


class Takeover:
    """The successor's side. `sock` is the listening socket; the other server accepts on it until `arrive`."""

    def __init__(self, connection: socket.socket, sock: socket.socket) -> None:
        self._connection = connection
        self.sock = sock

    @classmethod
    def ask(cls, host: str, port: int) -> Takeover | None:
        """Ask the server on an address for its socket; None when there is none that offers it.

        Raises:
            ConfigError: it answered with something else, or not at all.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ASK_S)
        try:
            connection.connect(str(offer_path(host, port)))
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            return None
        # A server that ends, or has another successor, hangs up.
        try:
            hello, fds, _, _ = socket.recv_fds(connection, len(_HELLO), 1)
        except TimeoutError as error:
            connection.close()
            raise ConfigError(
                f"--takeover: the server on {host}:{port} has not answered within {_ASK_S:g} s.",
                code="E-NET-05",
                fix="It hangs, or another successor of it is still starting. Look at its log; end one of them.",
            ) from error
        if hello != _HELLO or len(fds) != 1:
            connection.close()
            raise ConfigError(
                f"--takeover: the server on {host}:{port} speaks another version.",
                code="E-NET-04",
                fix="Stop it first, then start this one without --takeover.",
            )
        sock = socket.socket(fileno=fds[0])
        sock.setblocking(False)
        connection.setblocking(False)
        return cls(connection, sock)

    async def arrive(self) -> None:
        """Tell the other server to stop accepting, and wait until it has; then the place is ours."""
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_sendall(self._connection, _READY)
            answer = await loop.sock_recv(self._connection, len(_YOURS))
        except OSError:
            answer = b""
        if answer != _YOURS:
            logger.warning("the other server ended by itself before the port was handed over")

    async def confirm(self) -> None:
        """Tell it that calls are taken here."""
        # It may be gone; then nobody waits for this.
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(self._connection, _SERVING)

    async def gone(self) -> None:
        """Wait until the other server has ended."""
        with self._connection, contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_recv(self._connection, 1)

    def close(self) -> None:
        """Hang up. Before `confirm` that says that this server has failed."""
        self._connection.close()


def _listen(path: Path) -> socket.socket:
    """A listening Unix socket (0600) in a folder (0700) of this user; what an ended server left is replaced."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    found = path.parent.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path.parent} is not this user's alone")
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    os.chmod(path, 0o600)
    listener.listen(1)
    listener.setblocking(False)
    return listener


def _is_same_user(connection: socket.socket) -> bool:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    _, uid, _ = _PEERCRED.unpack(raw)
    return uid in (os.getuid(), 0)
