"""Runs the application: binds first, answers `/startupz` while the model loads, finishes calls before it ends."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
import socket
import time
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.core.log import get_logger
from octavo.server.admin_socket import AdminSocket, admin_path
from octavo.server.exposure import is_loopback
from octavo.server.protocol import AdminProtocol, Protocol
from octavo.server.state import AppState
from octavo.server.tls import tls_context

logger = get_logger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_LAST_SECONDS = 1
"""What connections get to close after the calls on them have ended or were given up."""


def bind(config: ServerConfig) -> socket.socket:
    """A listening socket; its port is known at once, also for port 0.

    Raises:
        ConfigError: the address cannot be bound.
    """
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
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    return sock


def _bind_fix(number: int | None) -> str:
    if number == errno.EADDRINUSE:
        return "Stop the process that has the port, or give another --port (0 takes a free one)."
    if number == errno.EACCES:
        return "Give a --port from 1024 up, or the right to use a lower one."
    return "Give an address of this machine as --host (0.0.0.0 listens on all)."


def run_server(app: Starlette, config: ServerConfig, sock: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then until running calls are done or `shutdown_timeout` is over.

    The first signal makes `/readyz` fail and refuses new generating calls; a second one ends at once. `on_start` of
    the state runs beside the server.

    Raises:
        Exception: what `on_start` raised; the server has stopped by then.
    """
    path = admin_path(config)
    if path is None and config.state_dir is not None:
        logger.warning("--state-dir has too long a name for an admin socket; see --admin-socket")
    admin = None if path is None else AdminSocket(path)
    server = Server(app, config, admin)
    if server.state.keys.is_open and not is_loopback(config.host):
        logger.warning(
            "listening on %s without an API key: anyone may use this server", config.host
        )
    try:
        server.run(sockets=[sock])
    finally:
        if admin is not None:
            admin.remove()
    if server.state.failure is not None:
        raise server.state.failure


class Server(uvicorn.Server):
    """uvicorn that drains before it exits. Owner: `run_server`, or a test in a thread of its own."""

    def __init__(
        self, app: Starlette, config: ServerConfig, admin: AdminSocket | None = None
    ) -> None:
        state: AppState = app.state.octavo
        self.state = state
        self._grace_s = config.shutdown_timeout
        self._drain_until = math.inf
        self._has_told = False
        self._starting: asyncio.Task[None] | None = None
        self._admin = admin
        tls = tls_context(config)
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=Protocol,
                lifespan="on",
                log_level="warning" if config.disable_access_log else "info",
                access_log=not config.disable_access_log,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=_LAST_SECONDS,
                ws="none",
                ssl_context_factory=None if tls is None else (lambda *_: tls),
            )
        )

    def drain(self) -> None:
        """Refuse new calls, end when the running ones have."""
        self.state.is_draining = True
        self._drain_until = time.monotonic() + self._grace_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, stop at the second, drop everything at a third Ctrl-C."""
        if self.state.is_draining:
            self.force_exit = self.should_exit and sig == signal.SIGINT
            self.should_exit = True
        else:
            self.drain()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then start the engine beside it."""
        await super().startup(sockets)
        if self._admin is not None:
            loop = asyncio.get_running_loop()
            self.servers.append(
                await loop.create_unix_server(self._admin_protocol, sock=self._admin.sock)
            )
        if self.state.on_start is not None:
            self._starting = asyncio.create_task(self._start())

    def _admin_protocol(self) -> AdminProtocol:
        """One connection of the admin socket: without TLS, which has nothing to hide there."""
        return AdminProtocol(self.config, self.server_state, self.lifespan.state)

    async def _start(self) -> None:
        assert self.state.on_start is not None
        try:
            await self.state.on_start()
        except Exception as error:  # edge of the task: handed to `run_server`, which raises it
            self.state.failure = error
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to go."""
        state = self.state
        if state.is_draining:
            self._tell()
            is_over = time.monotonic() > self._drain_until
            if is_over and state.num_in_flight:
                logger.warning("%d calls cut off after the grace period", state.num_in_flight)
            if is_over or state.num_in_flight == 0:
                self.should_exit = True
        return await super().on_tick(counter)

    def _tell(self) -> None:
        """Say once what is being waited for: a server that does not end on Ctrl-C seems to hang."""
        if not self._has_told and self.state.num_in_flight:
            logger.warning(
                "shutting down: %d calls get %g s to finish; a second signal ends at once",
                self.state.num_in_flight,
                self._grace_s,
            )
        self._has_told = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end what is left."""
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self.state.num_in_flight and self.state.on_stop is not None:
            # First the engine: what still runs then ends with an error that says so, not in mid-air.
            await self.state.on_stop()
        await super().shutdown(sockets)
