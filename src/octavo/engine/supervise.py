"""Keeps an engine process running: starts it, reads it, and starts another when it has ended. asyncio, no torch.

Whatever a process ends from - a signal, an exit, an error of its loop, a frame that cannot be read, someone who asks for
it because it hangs - the next one is the same engine, with the same context and KV cache, and goes on with every open
request. What comes meanwhile waits. Too many ends with nothing answered in between are the end: then what is open fails
with the reason. An engine that has never been ready is not started again: its cause is the operator's to see.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

from msgspec.structs import replace

from octavo.core.charge import Charges
from octavo.core.config import EngineConfig
from octavo.core.errors import NOTHING_WORKS, ErrorInfo, OverloadError
from octavo.core.log import get_logger
from octavo.core.request import Request
from octavo.core.result import EngineStats, FinishReason
from octavo.decoding.grammar.base import Vocabulary
from octavo.engine.child import EngineProcess
from octavo.engine.following import Followers
from octavo.engine.ipc import (
    Cancel,
    Charged,
    ChargeEvery,
    Events,
    FollowSteps,
    FromEngine,
    Loading,
    Ready,
    ResetPrefixCache,
    Shutdown,
    Started,
    StartEngine,
    Steps,
    Submit,
    UseVocabulary,
    Went,
    frame,
)
from octavo.engine.life import Ending, Life, Process
from octavo.engine.streams import Stream, Streams

logger = get_logger(__name__)

State = Literal["loading", "ready", "restarting", "draining", "dead"]

IDLE_WINDOW_S = 600.0
"""Ends of an engine that was ready and had nothing to answer count as a loop when they are no further apart than this."""
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0
"""Before the second start in a row without an answer, and the most after doubling; the first comes at once."""
_MOST_BLAMED = 3
"""Different prompts that fail for ends of the engine with nobody answered in between; from then on it is its own fault."""
_LOAD_LIMIT_S = 60.0
_LOAD_LIMIT_TIMES = 10.0
"""A restart that takes longer than so many times the first start, and so much more, hangs."""
_SHUTDOWN_S = 2.0
_COUNTERS = (
    "num_steps",
    "num_preemptions",
    "prefix_queries",
    "prefix_hits",
    "prompt_tokens",
    "generation_tokens",
    "aborted_tokens",
    "recomputed_tokens",
    "recomputed_s",
)
"""What of `EngineStats` only grows; `faults` do, too, kind by kind."""


class Payer(Protocol):
    """Who books an engine's time. Moments are `time.monotonic()`."""

    def begin(self, at: float) -> None:
        """An engine is ready, and idle."""
        ...

    def charge(self, charges: Charges) -> None:
        """It says where its time went."""
        ...

    def lose(self, at: float) -> None:
        """There is no engine any more, or none yet."""
        ...


class _Unanswered(NamedTuple):
    """An end of the engine with nothing answered since the one before."""

    at: float
    reason: str
    is_idle: bool
    """Whether there was nothing to answer."""


class Supervisor:
    """Owner of the engine processes of one client, one at a time, and of the open requests."""

    def __init__(self, config: EngineConfig, launch: Callable[[], Process] = EngineProcess) -> None:
        self.config = config
        self.streams = Streams()
        self.followers = Followers(self._ask_steps)
        self.state: State = "loading"
        self.started: Ready | None = None
        """What was started last."""
        self.loading = Loading(phase="process", fraction=0.0)
        self.stats = EngineStats()
        """Counters go on where those of the last process stood."""
        self.reason = ""
        """What the last process ended from, while there is no other yet."""
        self.fatal: ErrorInfo | None = None
        self.restarts: Counter[str] = Counter()
        """By what the process ended from."""
        self.on_stats: Callable[[EngineStats], None] | None = None
        """Told of each step's snapshot."""
        self.settled = asyncio.Event()
        """Ready for the first time, or never to be."""
        self.process: Process | None = None
        self.payer: Payer | None = None
        self._charge_every: ChargeEvery | None = None
        self._launch = launch
        self._life: Life | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._closing = asyncio.Event()
        self._vocabulary: Vocabulary | None = None
        self._base: EngineStats | None = None
        self._unanswered: list[_Unanswered] = []
        self._blamed: set[tuple[int, ...]] = set()
        """Prompts of requests that failed for an end, until anybody is answered; choices of one call have one."""
        self._lost_at = 0.0
        self._first_load_s = 0.0

    # -- life ------------------------------------------------------------------------------------------------------

    def launch(self) -> None:
        """Start the first process, before there is an event loop."""
        assert self.process is None, "an engine is launched once"
        self.process = self._launched()

    async def start(self) -> None:
        """Start, unless launched; returns when the process is connected or gone. Then all goes by itself."""
        if self.process is None:
            self.launch()
        self._task = asyncio.create_task(self._run())
        await self._connected.wait()

    def restart(self, reason: str) -> bool:
        """End a process that hangs, and start another; False where there is none to restart."""
        if self.state not in ("ready", "restarting") or self._life is None:
            return False
        self._life.end(reason)
        return True

    async def close(self) -> None:
        """Abort what runs and end the process: asked first, killed after two seconds."""
        if self.state != "dead":
            self.state = "draining"
            self._closing.set()
            if self._life is not None:
                self._life.send(Shutdown())
        if self._task is None:
            if self.process is not None:
                self.process.abandon()
            return
        await asyncio.wait({self._task}, timeout=_SHUTDOWN_S)
        if not self._task.done() and self._life is not None:
            self._life.end("it was told to stop and did not")
        await self._task

    # -- requests --------------------------------------------------------------------------------------------------

    def open(self, request: Request) -> Stream:
        """Send a request, or keep it until there is an engine.

        Raises:
            OverloadError: there is none, and too many wait for it.
        """
        most = self.config.max_num_queued_reqs + self.config.max_num_seqs
        is_late = self.state == "restarting"
        if is_late and len(self.streams) >= most:
            raise OverloadError(
                f"the engine restarts and {len(self.streams)} requests wait for it; at most {most}.",
                fix="Try again later.",
                retry_after_s=5.0,
            )
        stream = self.streams.open(request, is_late=is_late)
        self._pump()
        if request.deadline is not None and not stream.is_sent:
            self._end_at(request.deadline, request.id)
        return stream

    def close_stream(self, request_id: str, reason: FinishReason = "abort") -> None:
        """The caller is gone before the end, or has all it wants ("stop")."""
        if self.streams.close(request_id) and self._life is not None:
            self._life.send(Cancel((request_id,), reason))
        self._pump()

    def abort(self, request_id: str) -> None:
        """Its caller ends a request. It is no longer open, however late its caller reads that."""
        self.streams.abort(request_id)
        self.close_stream(request_id)

    def use_vocabulary(self, vocabulary: Vocabulary) -> None:
        """Tell this engine and all later ones what grammars are built for; the first call counts."""
        if self._vocabulary is None:
            self._vocabulary = vocabulary
            if self.state == "ready" and self._life is not None:
                self._life.send(UseVocabulary(vocabulary))

    def reset_prefix_cache(self) -> None:
        """Forget cached prefixes. An engine that has just started has none."""
        if self.state == "ready" and self._life is not None:
            self._life.send(ResetPrefixCache())

    def _ask_steps(self, message: FollowSteps) -> None:
        """An engine that is not ready is asked when it is."""
        if self.state == "ready" and self._life is not None:
            self._life.send(message)

    def charge_every(self, seconds: float) -> None:
        """Have this engine and all later ones say where their time went at least so often."""
        self._charge_every = ChargeEvery(seconds)
        if self.state == "ready" and self._life is not None:
            self._life.send(self._charge_every)

    def _end_at(self, deadline: float, request_id: str) -> None:
        """End a request at its deadline if it waits for an engine then."""
        left_s = max(0.0, deadline - time.monotonic())
        asyncio.get_running_loop().call_later(left_s, self._expire, request_id)

    def _expire(self, request_id: str) -> None:
        self.streams.expire(request_id, time.monotonic())

    def _pump(self) -> None:
        if self.state == "ready" and self._life is not None and self.streams.has_held:
            for request in self.streams.due():
                self._life.send(Submit(request))

    # -- one process after the other -------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            ending = await self._live()
            while self._goes_on(ending):
                self._lose(ending)
                await self._pause()
                ending = await self._live() if self._replace() else _NO_PROCESS
            self._die(ending)
        except Exception as error:  # edge of the task: without it every stream would hang
            logger.exception("the engine's supervisor failed")
            if self._life is not None:
                self._life.end("its supervisor failed")
                self._life.process.remove()
            self._die(Ending("connection", f"the connection to the engine broke: {error}"))

    def _launched(self) -> Process:
        """Another process, which knows what it will be asked for."""
        process = self._launch()
        process.foretell(frame(self._start_of(process)))
        return process

    def _start_of(self, process: Process) -> StartEngine:
        return StartEngine(config=self._same_config(), asked_at=process.started_at)

    async def _live(self) -> Ending:
        """Run the process at hand from its connection to its end."""
        assert self.process is not None
        life = self._life = Life(self.process)
        life.send(self._start_of(self.process))
        limit_s = _LOAD_LIMIT_S + _LOAD_LIMIT_TIMES * self._first_load_s
        slow = f"the engine process was not ready after {limit_s:.0f} s"
        timer = asyncio.get_running_loop().call_later(limit_s, self._end_unready, life, slow)
        try:
            return await life.run(self._handle, self._connected.set)
        finally:
            timer.cancel()
            self._connected.set()

    def _end_unready(self, life: Life, reason: str) -> None:
        if self.state == "restarting" and life is self._life:
            life.end(reason)

    def _same_config(self) -> EngineConfig:
        """The config, with what was decided by the memory that was free at the first start.

        Requests were checked against that, so that an engine that came out smaller could not go on with them.
        """
        started = self.started
        if started is None:
            return self.config
        kv_bytes = dict(started.memory).get("kv cache", 0) or self.config.kv_cache_memory_bytes
        return replace(
            self.config, max_model_len=started.max_model_len, kv_cache_memory_bytes=kv_bytes
        )

    def _goes_on(self, ending: Ending) -> bool:
        """Whether to start another process after this end."""
        if self.state == "draining" or self.started is None or ending.kind == "stuck":
            return False
        now = time.monotonic()
        is_idle = self.state == "ready" and not len(self.streams)
        self._unanswered = [
            one for one in self._unanswered if not one.is_idle or now - one.at <= IDLE_WINDOW_S
        ]
        self._unanswered.append(_Unanswered(now, ending.reason, is_idle))
        return len(self._unanswered) <= self.config.max_engine_restarts

    def _lose(self, ending: Ending) -> None:
        """Take note of an end that is not the last."""
        assert self.process is not None
        if self.state == "ready":
            self._lost_at = time.monotonic()
            if self.payer is not None:
                self.payer.lose(self._lost_at)
        self.state, self.reason = "restarting", ending.reason
        self.restarts[ending.kind] += 1
        self.loading = Loading(phase="process", fraction=0.0)
        is_ours = len(self._blamed) >= _MOST_BLAMED
        lost = self.streams.lose(is_no_evidence=ending.is_from_outside or is_ours)
        for deadline, request_id in self.streams.deadlines:
            self._end_at(deadline, request_id)
        faults = Counter(dict(self.stats.faults))
        faults.update(["request_fault"] * len(lost.failed))
        self._base = self.stats = replace(
            self.stats,
            faults=tuple(faults.items()),
            num_running=0,
            num_waiting=len(self.streams),
            num_deferred=0,
            num_free_blocks=self.stats.num_blocks,
            queued_tokens=self.streams.num_tokens,
            pending_tokens=0,
        )
        logger.warning(
            "engine process %d: %s; %d requests were running, %d waiting; restart %d of %d in a row",
            self.process.pid,
            ending.reason,
            lost.num_running,
            lost.num_waiting,
            len(self._unanswered),
            self.config.max_engine_restarts,
        )
        if lost.failed:
            self._blamed.update(request.token_ids for request in lost.failed)
            if not _is_machine(ending) and len(self._blamed) < _MOST_BLAMED:
                self._unanswered.clear()  # what it seems to have ended from is gone
            names = ", ".join(request.id for request in lost.failed)
            logger.error("request %s fails: engines end when they run it", names)

    async def _pause(self) -> None:
        """Wait before a start, longer each time that nothing was answered since the last; less when told to stop."""
        if len(self._unanswered) > 1:
            pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (len(self._unanswered) - 2))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), pause_s)

    def _replace(self) -> bool:
        """Launch the next process; False when that cannot be, or is no longer wanted."""
        if self._closing.is_set():
            return False
        try:
            self.process = self._launched()
        except OSError as error:
            logger.error("the engine process cannot be started: %s", error)
            return False
        return True

    def _handle(self, message: FromEngine) -> None:
        now = time.monotonic()
        match message:
            case Events(events=events, stats=stats) | Went(events=events, stats=stats):
                self.stats = stats if self._base is None else _onto(self._base, stats)
                if self.on_stats is not None:
                    self.on_stats(self.stats)
                if events:
                    if self.streams.take(events, now):
                        self._unanswered.clear()
                        self._blamed.clear()
                    self._pump()
            case Steps():
                self.followers.take(message)
            case Charged(charges):
                if self.payer is not None:
                    self.payer.charge(charges)
            case Started():
                self.streams.start(message.ids, message.at)
            case Loading():
                self.loading = message
            case Ready():
                self._take_up(message, now)

    def _take_up(self, ready: Ready, now: float) -> None:
        """An engine can take requests: go on with those that are open."""
        is_first, self.started = self.started is None, ready
        if self.state == "draining":  # it was told to stop meanwhile
            self.settled.set()
            return
        assert self.process is not None and self._life is not None
        self.state = "ready"
        if self.payer is not None:
            self.payer.begin(now)
        if self._charge_every is not None:
            self._life.send(self._charge_every)
        if self._vocabulary is not None:
            self._life.send(UseVocabulary(self._vocabulary))
        if is_first:
            self._first_load_s = now - self.process.started_at
        else:
            logger.warning(
                "engine process %d is ready after %.1f s without one; %d open requests go on, %d of them in mid-answer",
                self.process.pid,
                now - self._lost_at,
                len(self.streams),
                self.streams.num_begun,
            )
        self.followers.resume()
        self._pump()
        self.settled.set()

    def _die(self, ending: Ending) -> None:
        is_expected = self.state == "draining"
        if self.payer is not None and self.state in ("ready", "draining"):
            self.payer.lose(time.monotonic())
        self.state = "dead"
        if not is_expected:
            self.fatal = self._cause(ending)
            logger.error("%s", self.fatal.one_line())
        info = self.fatal or ErrorInfo(
            code="engine_unavailable", message="the engine is shutting down.", status=503
        )
        self.streams.fail(unavailable(info))
        self.followers.end()
        self.settled.set()

    def _cause(self, ending: Ending) -> ErrorInfo:
        """What to tell the operator of the last end."""
        fix = "The engine's own log lines are above; out of memory shows as code -9."
        if len(self._unanswered) > 1:
            reasons = "; ".join(dict.fromkeys(one.reason for one in self._unanswered))
            span_s = self._unanswered[-1].at - self._unanswered[0].at
            return ErrorInfo(
                code="E-ENGINE-04",
                message=f"the engine ended {len(self._unanswered)} times in {span_s:.0f} s and answered nothing in "
                f"between ({reasons}); --max-engine-restarts is {self.config.max_engine_restarts}.",
                status=503,
                fix=fix,
            )
        return ending.error or ErrorInfo(
            code="E-ENGINE-02", message=f"{ending.reason}.", status=503, fix=fix
        )


def _is_machine(ending: Ending) -> bool:
    """Whether not even a token of nobody's got through, so that the next request may do no better than this one."""
    return ending.error is not None and ending.error.code == NOTHING_WORKS


_NO_PROCESS = Ending("launch", "no engine process can be started")


def unavailable(cause: ErrorInfo) -> ErrorInfo:
    """Why the engine ended, as what a request is told of it."""
    return replace(cause, code="engine_unavailable", status=503)


def _onto(base: EngineStats, stats: EngineStats) -> EngineStats:
    """A snapshot of a later process, counted on from those before it."""
    totals = {name: getattr(base, name) + getattr(stats, name) for name in _COUNTERS}
    faults = Counter(dict(base.faults)) + Counter(dict(stats.faults))
    return replace(stats, faults=tuple(faults.items()), **totals)
