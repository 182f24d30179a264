"""One engine process from its start to its end, as messages: what it says, what it is told, and why it ended. No torch."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from octavo.core.errors import EngineError, ErrorInfo
from octavo.engine.child import oom_kills
from octavo.engine.ipc import (
    Abbreviation,
    Fatal,
    FromEngine,
    ToEngine,
    decode_from_engine,
    frame,
    read_frame,
)
from octavo.engine.page import Page

Kind = Literal["signal", "exit", "fatal", "connection", "asked", "launch", "stuck"]
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_END_S = 2.0
"""What a process gets to end by itself once it has closed the connection."""
_KILL_S = 30.0
"""What the kernel gets to take a killed process away."""


class Ending(NamedTuple):
    """Why there is no engine any more."""

    kind: Kind
    reason: str
    """A clause, without a full stop."""
    error: ErrorInfo | None = None
    """What the engine said of it."""
    is_from_outside: bool = False
    """Whether somebody sent it a signal, so that it says nothing of the requests at hand."""


class Process(Protocol):
    """What is needed of an engine's process (`child.EngineProcess`)."""

    started_at: float
    pulse: Page
    """In which it shows that it lives."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    def foretell(self, told: bytes) -> None:
        """Say what it will be asked to start (a `StartEngine` frame), before it is connected to."""
        ...

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Its connection; None when it ended before it had one."""
        ...

    async def wait(self) -> int:
        """Its exit code, once it has one."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    def remove(self) -> None:
        """Delete what it leaves behind."""
        ...

    def abandon(self) -> None:
        """Kill it, wait for its end, and remove, all without an event loop."""
        ...


class Life:
    """Owner of one process and its connection. All methods belong to one event loop."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._writer: asyncio.StreamWriter | None = None
        self._outbox: list[bytes] = []
        self._asked = ""
        self._oom_kills = oom_kills()

    def send(self, message: ToEngine) -> None:
        """Queue a frame; those of one turn of the event loop go out together, so a batch starts as one."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(frame(message))

    def end(self, reason: str) -> None:
        """Kill the process; `reason` is then what it ended from."""
        self._asked = reason
        self._kill()

    async def run(
        self, handle: Callable[[FromEngine], None], connected: Callable[[], None]
    ) -> Ending:
        """Connect, hand over what the engine says until there is no more, see the process off, and say why it ended."""
        streams = await self.process.connect()
        if streams is None:
            return await self._see_off("before it connected", None, "")
        reader, self._writer = streams
        self._flush()
        connected()
        broken, fatal, abbreviation = "", None, Abbreviation()
        try:
            while fatal is None:
                message = abbreviation.complete(decode_from_engine(await read_frame(reader)))
                if isinstance(message, Fatal):
                    fatal = message.error
                else:
                    handle(message)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        except EngineError as error:
            broken = f"the engine process said what cannot be read: {error.message}"
            self._kill()
        finally:
            self._writer.close()
            with contextlib.suppress(ConnectionError):
                await self._writer.wait_closed()
        return await self._see_off("", fatal, broken)

    async def _see_off(self, when: str, fatal: ErrorInfo | None, broken: str) -> Ending:
        """Wait for the end, and help if need be: two engines at once may not fit into the memory."""
        try:
            code = await asyncio.wait_for(self.process.wait(), _END_S)
        except TimeoutError:
            self._kill()
            try:
                code = await asyncio.wait_for(self.process.wait(), _KILL_S)
            except TimeoutError:
                return Ending("stuck", f"process {self.process.pid} cannot be killed", fatal)
        self.process.remove()
        if self._asked:
            return Ending("asked", self._asked, fatal)
        if fatal is not None:
            return Ending("fatal", fatal.one_line().rstrip("."), fatal)
        if broken:
            return Ending("connection", broken)
        starved = code == -signal.SIGKILL and oom_kills() > self._oom_kills
        how = f"{_named(code)}{', out of memory' if starved else ''} {when}".rstrip()
        kind: Kind = "signal" if code < 0 else "exit"
        is_from_outside = -code in _FROM_OUTSIDE and not starved
        return Ending(kind, f"the engine process ended with code {how}", None, is_from_outside)

    def _flush(self) -> None:
        if self._writer is None:
            return  # goes out once it is connected
        frames, self._outbox = b"".join(self._outbox), []
        if not self._writer.is_closing():
            self._writer.write(frames)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


def _named(code: int) -> str:
    """-9 as "-9 (SIGKILL)"."""
    names: dict[int, Any] = {-number: number.name for number in signal.Signals}
    return f"{code} ({names[code]})" if code in names else str(code)
