"""The engine's process from its parent's side: started before there is an event loop, waited for inside one. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from octavo.engine.spawn import WORKER, Spawned

_LOOK_EVERY_S = 0.05
"""Whether a process has ended, where no thread can wait for that."""


class EngineProcess:
    """A process that connects to its parent's socket.

    It is started by the constructor, if not before, so that it loads its libraries while the caller loads its own; it waits
    for what `foretell` tells it, and then for its first frame. Dies with its parent; `remove` takes away what it leaves on
    disk.
    """

    def __init__(self, command: Sequence[str] = WORKER, spawned: Spawned | None = None) -> None:
        """`spawned` is a process that was started for this; None: `command` is started (`spawn.Spawned`).

        Raises:
            OSError: there is no room for a socket, or for a process.
        """
        self._spawned = Spawned(command) if spawned is None else spawned
        self._spawned.is_taken = True
        self._popen = self._spawned.popen
        self.started_at = self._spawned.started_at
        self.pulse = self._spawned.pulse
        self.folder = self._spawned.folder
        """In which its socket lies."""
        self._ended: asyncio.Future[int] | None = None
        self._look: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Its id."""
        return self._popen.pid

    @property
    def has_ended(self) -> bool:
        """Whether it is known to be gone."""
        return self._popen.returncode is not None

    def foretell(self, told: bytes) -> None:
        """Say what it will be asked to start, before anybody connects to it; then its standard input ends."""
        pipe = self._popen.stdin
        assert pipe is not None, "a pipe was asked for"
        with contextlib.suppress(BrokenPipeError), pipe:  # it may have ended already
            pipe.write(told)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Its connection; None when it ended before it had one. Nobody else can connect after that."""
        connected: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        connected = asyncio.get_running_loop().create_future()

        def on_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if connected.done():
                writer.close()  # one engine per client; anyone else is turned away
            else:
                connected.set_result((reader, writer))

        server = await asyncio.start_unix_server(on_connect, sock=self._spawned.listener)
        exited = asyncio.create_task(self.wait())
        either: set[asyncio.Future[Any]] = {connected, exited}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        server.close()
        exited.cancel()
        return connected.result() if connected.done() else None

    async def wait(self) -> int:
        """Its exit code, once it has one. Waits in one event loop only."""
        if self._ended is None:
            loop = asyncio.get_running_loop()
            ended = self._ended = loop.create_future()

            def settle(code: int) -> None:
                if not ended.done():
                    ended.set_result(code)

            def watch() -> None:
                code = self._popen.wait()
                with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                    loop.call_soon_threadsafe(settle, code)

            try:
                threading.Thread(target=watch, name="octavo-engine-exit", daemon=True).start()
            except RuntimeError:  # no room for one, which may be what the process ended from, too
                self._look = loop.create_task(self._look_until_ended(settle))
        return await asyncio.shield(self._ended)

    async def _look_until_ended(self, settle: Callable[[int], None]) -> None:
        while (code := self._popen.poll()) is None:
            await asyncio.sleep(_LOOK_EVERY_S)
        settle(code)

    def kill(self) -> None:
        """End it at once."""
        self._popen.kill()

    def remove(self) -> None:
        """Close the listener and delete the socket's folder."""
        self._spawned.remove()

    def abandon(self) -> None:
        """Kill it, wait for its end, and remove: for a caller that will not get as far as an event loop."""
        self._spawned.abandon()


def oom_kills() -> int:
    """How often the kernel has killed a process for want of memory, on this host and in this container; 0 if it is silent."""
    total = 0
    for name in ("/proc/vmstat", "/sys/fs/cgroup/memory.events"):
        with contextlib.suppress(OSError):
            lines = Path(name).read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    return total
