"""Runs the application: binds first, answers `/startupz` while the model loads, finishes calls before it ends.

A listening socket may also come from a service manager (systemd's socket activation) or from the server that has the
port (`handover.py`); then a restart refuses no connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import time
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette

from octavo.core import env
from octavo.core.config import ServerConfig
from octavo.core.errors import ConfigError
from octavo.core.log import get_logger
from octavo.server.listen.admin_socket import AdminPlace, admin_path
from octavo.server.listen.exposure import is_loopback
from octavo.server.listen.handover import Offer, Takeover, offer_path
from octavo.server.listen.listening import host_of
from octavo.server.listen.protocol import AdminProtocol, Protocol
from octavo.server.listen.tls import tls_context
from octavo.server.state import AppState

logger = get_logger(__name__)

_KEEP_ALIVE_S = 30
_TICK_S = 0.1
_QUIET_S = 3.0
"""A client with a connection to a server that was replaced gets so long to use it; most clients keep them for 5 s."""
_LAST_SECONDS = 1
"""What connections get to close after the calls on them have ended or were given up."""


def run_server(
    app: Starlette, config: ServerConfig, sock: socket.socket, takeover: Takeover | None = None
) -> None:
    """Serve until SIGTERM or SIGINT, then until running calls are done or `shutdown_timeout` is over.

    The first signal makes `/readyz` fail and refuses new generating calls; a second one ends at once. `on_start` of
    the state runs beside the server; before it accepts connections where those can wait (`takeover`, a passed socket).

    Raises:
        Exception: what `on_start` raised; the server has stopped by then.
    """
    path = admin_path(config)
    if path is None and config.state_dir is not None:
        logger.warning("--state-dir has too long a name for an admin socket; see --admin-socket")
    server = Server(app, config, takeover, path)
    host = host_of(sock)
    if server.state.keys.is_open and host is not None and not is_loopback(host):
        logger.warning("listening on %s without an API key: anyone may use this server", host)
    server.run(sockets=[sock])
    if server.state.failure is not None:
        raise server.state.failure


class Server(uvicorn.Server):
    """uvicorn that drains before it exits. Owner: `run_server`, or a test in a thread of its own.

    `admin` is where an admin socket is to be while this server has the place.
    """

    def __init__(
        self,
        app: Starlette,
        config: ServerConfig,
        takeover: Takeover | None = None,
        admin: Path | None = None,
    ) -> None:
        state: AppState = app.state.octavo
        self.state = state
        self._host = config.host
        self._grace_s = config.shutdown_timeout
        self._drain_until = math.inf
        self._has_told = False
        self._starting: asyncio.Task[None] | None = None
        self._takeover = takeover
        self._offer: Offer | None = None
        self._alone: asyncio.Task[None] | None = None
        self._quiet = (0, 0.0)
        """Calls so far, and since when there were no more."""
        self._admin = AdminPlace(admin, self._admin_protocol)
        tls = tls_context(config)
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=Protocol,
                lifespan="on",
                log_level="warning" if config.disable_access_log else "info",
                log_config=None,  # core/log.py has its lines, access.py those of calls
                access_log=False,
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

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to stop. However that ends, no admin socket of this server is left, and a server that waits
        for this one's first answer knows at once that there will be none.
        """
        try:
            await super().serve(sockets)
        finally:
            self._admin.leave()
            if self._takeover is not None:
                self._takeover.close()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen and start the engine beside it. Where connections can wait for it, the engine starts first."""
        if self._takeover is None:
            self._admin.bind()
        starts_first = self._takeover is not None or env.listen_fd() is not None
        if starts_first and not await self._start_first():
            self.should_exit = True
            return
        if self._takeover is not None:
            await self._takeover.arrive()
            self._admin.bind()  # until now it is the other server's
        if self.state.open_kept is not None:
            self.state.kept = self.state.open_kept()
        await super().startup(sockets)
        self.servers += await self._admin.listen()
        if self._takeover is not None:
            await self._takeover.confirm()
            self._alone = asyncio.create_task(self._when_alone(self._takeover))
        else:
            self.state.responses.fail_abandoned()
        if self.state.on_start is not None and not starts_first:
            self._starting = asyncio.create_task(self._start())
        self._offer_place(sockets or [])

    async def _when_alone(self, takeover: Takeover) -> None:
        """What the other server was making when it ended is nobody's."""
        await takeover.gone()
        self.state.responses.fail_abandoned()

    async def _start_first(self) -> bool:
        """Start the engine before anything is accepted. False when told to stop meanwhile."""
        if self.state.on_start is None:
            return True
        starting = asyncio.ensure_future(self.state.on_start())
        while not starting.done() and not self.state.is_draining:
            await asyncio.wait({starting}, timeout=_TICK_S)
        if starting.done():
            starting.result()
            return True
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        if self.state.on_stop is not None:
            await self.state.on_stop()
        return False

    def _offer_place(self, sockets: list[socket.socket]) -> None:
        """Let a successor ask for the listening socket, where there is one on an address."""
        inet = [sock for sock in sockets if sock.family in (socket.AF_INET, socket.AF_INET6)]
        if not inet:
            return
        kept = inet[0].dup()
        path = offer_path(self._host, kept.getsockname()[1])
        try:
            self._offer = Offer(path, kept, self._leave, partial(self._stay, kept), self._left)
        except OSError as error:
            logger.warning("no successor can take over this port (--takeover): %s", error)

    async def _leave(self) -> None:
        for server in self.servers:
            if server is not self._admin.server:  # its file is replaced in one step
                server.close()
        if self.state.batches is not None:
            await self.state.batches.stop()
        if self.state.store is not None:
            self.state.store.hand_over()

    async def _stay(self, kept: socket.socket) -> None:
        await self._listen(kept.dup())
        try:
            self.servers += await self._admin.take_back()
            if self.state.store is not None:
                self.state.store.take_back()
        except (ConfigError, OSError) as error:  # calls are answered all the same
            logger.error("what the successor had was not given back: %s", error)
            return
        if self.state.batches is not None:
            self.state.batches.start()

    async def _listen(self, sock: socket.socket) -> None:
        """Accept connections again, as `uvicorn.Server.startup` does."""
        self.servers.append(
            await asyncio.get_running_loop().create_server(
                partial(
                    Protocol,
                    config=self.config,
                    server_state=self.server_state,
                    app_state=self.lifespan.state,
                ),
                sock=sock,
                ssl=self.config.ssl,
                backlog=self.config.backlog,
            )
        )

    async def _left(self) -> None:
        self._drain_until = time.monotonic() + self._grace_s
        self.state.is_leaving = True

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
        if state.is_leaving and not state.is_draining and self._may_leave():
            state.is_draining = True
        if state.is_draining:
            self._tell()
            is_over = time.monotonic() > self._drain_until
            if is_over and state.num_in_flight:
                logger.warning("%d calls cut off after the grace period", state.num_in_flight)
            if is_over or state.num_in_flight == 0:
                self.should_exit = True
        return await super().on_tick(counter)

    def _may_leave(self) -> bool:
        """Whether nobody will miss this server: no calls, and no connection that may be about to bring one."""
        now, calls = time.monotonic(), self.server_state.total_requests
        if calls != self._quiet[0] or self.state.num_in_flight:
            self._quiet = (calls, now)
        is_quiet = not self.server_state.connections or now - self._quiet[1] > _QUIET_S
        return now > self._drain_until or (not self.state.num_in_flight and is_quiet)

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
        if self._alone is not None:
            self._alone.cancel()
            await asyncio.gather(self._alone, return_exceptions=True)
        if self._starting is not None:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._starting
        if self.state.num_in_flight and self.state.on_stop is not None:
            # First the engine: what still runs then ends with an error that says so, not in mid-air.
            await self.state.on_stop()
        await super().shutdown(sockets)
        if self._offer is not None:
            await self._offer.close()
