"""The engine as seen from outside: start it, stream events from it, know its state. asyncio, no torch.

One client owns one engine, which is one process at a time: should it end, `supervise.py` starts another, and open streams
go on after a pause as if nothing had been. The socket lies in a private folder (0700) and is 0600; the process dies with
its client. When no other is started, every open stream ends with the cause and new requests are refused with it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import msgspec

from octavo.core.config import EngineConfig
from octavo.core.errors import EngineDeadError, ErrorInfo, from_info
from octavo.core.request import Request
from octavo.core.result import EngineStats, Event, Failed, Finished, RequestTiming, TokenOut
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.child import EngineProcess
from octavo.engine.ipc import Ready, Steps
from octavo.engine.life import Process
from octavo.engine.page import Reading
from octavo.engine.streams import Stage
from octavo.engine.supervise import Payer, State, Supervisor, unavailable


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The truth about the engine, for health endpoints."""

    state: State
    phase: str = ""
    fraction: float = 0.0
    """Of the load, also while restarting."""
    reason: str = ""
    """Why it is dead, or what the last process ended from while it restarts."""
    restarts: tuple[tuple[str, int], ...] = ()
    """How often it was started again, by what it ended from."""
    pulse: Reading | None = None
    """What the process shows of itself, once it is ready."""


class EngineClient:
    """Owner of an engine. All methods belong to one event loop, but `launch` and `abandon`."""

    def __init__(self, config: EngineConfig, launch: Callable[[], Process] = EngineProcess) -> None:
        self.config = config
        self._supervisor = Supervisor(config, launch)

    # -- life ------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the process, before there is an event loop: it loads libraries until `start` connects to it."""
        self._supervisor.launch()

    def abandon(self) -> None:
        """End a process that was launched and never connected to."""
        if self._supervisor.process is not None:
            self._supervisor.process.abandon()

    async def start(self) -> None:
        """Start the process unless it was launched; returns when it is connected. Loading goes on; see `wait_ready`."""
        await self._supervisor.start()

    async def wait_ready(self) -> Ready:
        """Wait until the engine takes requests.

        Raises:
            OperatorError: it could not start; the cause.
            EngineDeadError: it died on the way.
        """
        await self._supervisor.settled.wait()
        return self.ready

    def restart(self, reason: str) -> bool:
        """End a process that hangs; another one goes on with what is open. False where there is none to restart."""
        return self._supervisor.restart(reason)

    async def close(self) -> None:
        """Abort what runs and end the process: asked first, killed after two seconds."""
        await self._supervisor.close()

    async def __aenter__(self) -> EngineClient:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    # -- state -----------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> Ready:
        """What was started. Stays while the engine restarts: requests are taken, and wait.

        Raises:
            OperatorError: it could not start.
            EngineDeadError: it is loading, closing or dead.
        """
        engine = self._supervisor
        if engine.started is not None and engine.state in ("ready", "restarting"):
            return engine.started
        if engine.fatal is not None:
            raise from_info(engine.fatal if engine.started is None else unavailable(engine.fatal))
        status = self.status()
        raise EngineDeadError(
            f"the engine is {status.state}{': ' if status.phase else ''}{status.phase}.",
            fix="Try again later.",
            retry_after_s=1.0,
        )

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot; counters go on over restarts."""
        return self._supervisor.stats

    def watch(self, on_stats: Callable[[EngineStats], None]) -> None:
        """Tell of each step's snapshot as it comes: `stats` may skip some."""
        self._supervisor.on_stats = on_stats

    def stage(self, request_id: str) -> Stage:
        """Where a request stands: `running` has been in a step of the engine that there is."""
        return self._supervisor.streams.stage(request_id)

    @property
    def fatal(self) -> ErrorInfo | None:
        """Why there is no engine any more."""
        return self._supervisor.fatal

    @property
    def pid(self) -> int | None:
        """The engine's process id."""
        process = self._supervisor.process
        return None if process is None else process.pid

    def status(self) -> EngineStatus:
        """What state it is in and why."""
        engine = self._supervisor
        is_loading = engine.state in ("loading", "restarting")
        reason = engine.reason if engine.state == "restarting" else ""
        return EngineStatus(
            state=engine.state,
            phase=engine.loading.phase if is_loading else "",
            fraction=engine.loading.fraction if is_loading else 1.0,
            reason=engine.fatal.one_line() if engine.fatal is not None else reason,
            restarts=tuple(engine.restarts.items()),
            pulse=self._pulse(),
        )

    def _pulse(self) -> Reading | None:
        engine = self._supervisor
        if engine.process is None or engine.state != "ready":
            return None
        return engine.process.pulse.read(time.monotonic())

    # -- requests --------------------------------------------------------------------------------------------------

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Submit, then yield events up to and including one Finished or Failed. Closing it early cancels.

        Raises:
            EngineDeadError: the engine cannot take requests.
            OverloadError: it restarts, and too many wait for it.
        """
        self.ready  # noqa: B018  # raises unless ready
        queue = self._supervisor.open(request).queue
        ended = False
        num_output = 0
        try:
            while not ended:
                event = await queue.get()
                if event is None:
                    yield aborted(request, num_output)
                    return
                if isinstance(event, TokenOut):
                    num_output += len(event.token_ids)
                ended = isinstance(event, Finished | Failed)
                yield event
        finally:
            if not ended:
                self._supervisor.close_stream(request.id)

    def cancel(self, request_id: str) -> None:
        """End a request at once, whatever the engine is doing: its events end with a Finished that says abort. Unknown
        ids are ignored.
        """
        self._supervisor.abort(request_id)

    def stop(self, request_id: str) -> None:
        """A request has said all that its caller wants: the engine need not go on, and nothing was in vain."""
        self._supervisor.close_stream(request_id, "stop")

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tell the engine, once, what grammars are built for; before the first request with a grammar."""
        self._supervisor.use_vocabulary(vocabulary)

    def follow_steps(self) -> AsyncIterator[Steps]:
        """What the engine's steps are from now on, some at a time, over its restarts: after one they count from 1 again.

        Ends with the engine. Close it (`contextlib.aclosing`) when done: nothing is sent while nobody follows. Who reads
        too slowly loses the oldest, and is told how many.
        """
        return self._supervisor.followers.follow()

    def charge_to(self, payer: Payer) -> None:
        """Tell `payer` where the time of this engine and all later ones goes; before `start`."""
        self._supervisor.payer = payer

    def charge_every(self, seconds: float) -> None:
        """Have that told at least so often; 0: after every step."""
        self._supervisor.charge_every(seconds)

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes that nobody is using."""
        self._supervisor.reset_prefix_cache()


def aborted(request: Request, num_output: int = 0) -> Finished:
    """The end of a request whose caller ends it."""
    return Finished(
        id=request.id,
        reason="abort",
        stop_token=None,
        num_prompt=request.num_prompt,
        num_output=num_output,
        num_cached=0,
        num_preemptions=0,
        timing=RequestTiming(
            arrived=request.arrived, admitted=None, first_token=None, last_token=None
        ),
    )
