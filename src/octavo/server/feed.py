"""What the console draws, gathered once for all who watch: samples of the server's numbers, and the engine's steps.

Nothing waits for a watcher. Each has a position among the steps and takes what has come since when it is ready for more;
one that falls behind what is kept is told how much it missed. While nobody watches, the engine sends no steps.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import UNSET, Raw, UnsetType

from octavo.core.aio import closable
from octavo.core.errors import OctavoError, OverloadError
from octavo.core.log import get_logger
from octavo.core.result import EngineStats
from octavo.engine.client import EngineStatus
from octavo.engine.ipc import Ready, Steps
from octavo.meter.metrics import Metrics
from octavo.meter.steplog import StepRecord
from octavo.server.running import Calls, Running

logger = get_logger(__name__)

MAX_WATCHERS = 16
TICK_S = 0.1
"""Between two frames of a watcher."""
SAMPLE_S = 0.2
CALLS_S = 1.0
HISTORY_S = 300
"""Samples that a new watcher gets at once, one a second."""
MAX_FRAME_BYTES = 512 << 10
"""Of steps. What is beyond comes with the next frame."""
MAX_KEPT_STEPS = 2048
MAX_KEPT_BYTES = 16 << 20
MAX_CALLS = 256
_TTFT = "vllm:time_to_first_token_seconds"
_ITL = "vllm:inter_token_latency_seconds"

_encode = msgspec.json.Encoder().encode


class About(msgspec.Struct, frozen=True, kw_only=True):
    """What was started. Sent first, and again when it is another."""

    version: str
    model: str
    device: str
    dtype: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int
    block_size: int
    ttft_bounds: tuple[float, ...]
    """Upper bounds of the buckets of `Sample.ttft`, in seconds, the last without one."""
    itl_bounds: tuple[float, ...]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers at one time. Those that count since the start only grow."""

    at: float
    """Unix time."""
    state: str
    running: int
    waiting: int
    queued_tokens: int
    prompt: int
    """Prompt tokens computed."""
    output: int
    """Tokens generated."""
    queries: int
    """Prompt tokens looked up in the prefix cache."""
    hits: int
    blocks: int
    free: int
    preemptions: int
    steps: int
    step_s: float
    """Of the last step."""
    ttft: tuple[int, ...]
    """Observations up to each bound of `About.ttft_bounds`; the last is all."""
    itl: tuple[int, ...]


class CallRow(msgspec.Struct, frozen=True, kw_only=True):
    """A call under way that the engine knows of."""

    id: str
    tenant: str
    route: str
    created: int
    choices: int
    prompt_tokens: int
    completion_tokens: int
    max_tokens: int


class Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event."""

    about: About | UnsetType = UNSET
    history: list[Raw] | UnsetType = UNSET
    sample: Raw | UnsetType = UNSET
    names: list[tuple[int, str]] | UnsetType = UNSET
    """Handle and request id, of all that later steps name by handle: in the first frame, and after steps were missed."""
    missed: int = 0
    """Steps before these that nobody can tell any more."""
    steps: list[Raw] | UnsetType = UNSET
    """[step, at, elapsed_s, gap_s, num_blocks, num_free_blocks, waiting, started, ended, slices, names], requests by handle;
    a slice is [handle, start, num_tokens, num_sampled or -1 if it failed, block ...]; `names` of handles not told before.
    """
    calls: list[CallRow] | UnsetType = UNSET


class Engine(Protocol):
    """What is asked of an engine."""

    @property
    def ready(self) -> Ready:
        """What was started; raises until then."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The latest snapshot."""
        ...

    def status(self) -> EngineStatus:
        """How it is."""
        ...

    def follow_steps(self) -> AsyncIterator[Steps]:
        """Its steps from now on."""
        ...


class _Kept(NamedTuple):
    data: bytes
    ended: tuple[str, ...]


class Feed:
    """All that watchers are told. Owner: the server's event loop."""

    def __init__(self, engine: Engine, metrics: Metrics, calls: Calls, version: str) -> None:
        self._engine = engine
        self._metrics = metrics
        self._calls = calls
        self._version = version
        self.num_watchers = 0
        self._history: deque[Raw] = deque(maxlen=HISTORY_S)
        self._sampled: tuple[float, Raw] = (-SAMPLE_S, Raw(b"null"))
        self._steps: deque[_Kept] = deque()
        self._num_bytes = 0
        self._next = 0
        """Steps told so far, lost ones among them: position of the next."""
        self._handles: dict[str, int] = {}
        self._handle = itertools.count()
        self._following: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Keep a sample of every second, for those who begin to watch."""
        while True:
            await asyncio.sleep(1.0)
            self._history.append(self._sample())

    async def watch(
        self, count: int | None, is_over: Callable[[], bool]
    ) -> AsyncGenerator[bytes, None]:
        """Frames as JSON, `count` of them or until the server `is_over`.

        Raises:
            OverloadError: too many watch already.
        """
        if self.num_watchers >= MAX_WATCHERS:
            raise OverloadError(
                f"{self.num_watchers} consoles are open; at most {MAX_WATCHERS}.",
                fix="Close one of them.",
                retry_after_s=10.0,
            )
        self._enter()
        try:
            position = self._oldest
            about: About | None = None
            sampled = called = 0.0
            for number in itertools.count(1):
                frame: dict[str, Any] = {}
                steps, position, missed = self._since(position)
                if number == 1:
                    frame["history"] = list(self._history)
                if number == 1 or missed:
                    frame |= {"names": self._names(), "missed": missed}
                now = time.monotonic()
                if now - sampled >= SAMPLE_S:
                    sampled, frame["sample"] = now, self._sample()
                if now - called >= CALLS_S:
                    called, frame["calls"] = now, self._call_rows()
                    is_new, about = self._about(about)
                    if is_new:
                        frame["about"] = about
                if steps:
                    frame["steps"] = steps
                if frame:
                    yield _encode(Frame(**frame))
                if number == count or is_over():
                    return
                await asyncio.sleep(TICK_S)
        finally:
            self._leave()

    # -- steps -----------------------------------------------------------------------------------------------------

    @property
    def _oldest(self) -> int:
        return self._next - len(self._steps)

    def _enter(self) -> None:
        self.num_watchers += 1
        if self._following is None:
            self._following = asyncio.create_task(self._follow())
            self._following.add_done_callback(_tell_bug)

    def _leave(self) -> None:
        self.num_watchers -= 1
        if not self.num_watchers and self._following is not None:
            self._following.cancel()
            self._following = None
            self._forget()

    def _forget(self) -> None:
        self._steps.clear()
        self._num_bytes = 0
        self._handles.clear()

    async def _follow(self) -> None:
        async with aclosing(closable(self._engine.follow_steps())) as messages:
            async for message in messages:
                self._take(message)

    def _take(self, message: Steps) -> None:
        if message.num_lost:
            # Whoever watches has to learn that there is a hole.
            self._next += message.num_lost
            self._forget()
        for record in message.records:
            self._keep(record)

    def _keep(self, record: StepRecord) -> None:
        names: list[tuple[int, str]] = []

        def handle(request_id: str) -> int:
            known = self._handles.get(request_id)
            if known is None:
                known = self._handles[request_id] = next(self._handle)
                names.append((known, request_id))
            return known

        started = [handle(one) for one in record.started]
        ended = [handle(one) for one in record.ended]
        slices = [
            (
                handle(one.id),
                one.start,
                one.num_tokens,
                -1 if one.failed else one.num_sampled,
                *one.blocks,
            )
            for one in record.slices
        ]
        head = (
            record.step,
            round(record.at, 6),
            round(record.elapsed_s, 6),
            round(record.gap_s, 6),
            record.num_blocks,
            record.num_free_blocks,
            record.waiting,
        )
        data = _encode((*head, started, ended, slices, names))
        self._steps.append(_Kept(data, record.ended))
        self._num_bytes += len(data)
        self._next += 1
        while len(self._steps) > MAX_KEPT_STEPS or self._num_bytes > MAX_KEPT_BYTES:
            gone = self._steps.popleft()
            self._num_bytes -= len(gone.data)
            for request_id in gone.ended:  # one that came back gets a new handle
                self._handles.pop(request_id, None)

    def _since(self, position: int) -> tuple[list[Raw], int, int]:
        """Steps from a position on, the position after them, and how many before them are gone."""
        missed = max(0, self._oldest - position)
        position += missed
        steps: list[Raw] = []
        num_bytes = 0
        for kept in itertools.islice(self._steps, position - self._oldest, None):
            num_bytes += len(kept.data)
            if steps and num_bytes > MAX_FRAME_BYTES:
                break
            steps.append(Raw(kept.data))
        return steps, position + len(steps), missed

    def _names(self) -> list[tuple[int, str]]:
        return [(handle, request_id) for request_id, handle in self._handles.items()]

    # -- numbers ---------------------------------------------------------------------------------------------------

    def _about(self, told: About | None) -> tuple[bool, About | None]:
        """What was started, and whether that is news to who was told so much."""
        try:
            ready = self._engine.ready
        except OctavoError:  # not yet, or no longer; the samples say so
            return False, told
        about = About(
            version=self._version,
            model=ready.model,
            device=ready.device,
            dtype=ready.dtype,
            max_model_len=ready.max_model_len,
            max_num_seqs=ready.max_num_seqs,
            max_num_batched_tokens=ready.max_num_batched_tokens,
            num_blocks=ready.num_blocks,
            block_size=ready.block_size,
            ttft_bounds=_bounds(self._metrics.buckets(_TTFT)),
            itl_bounds=_bounds(self._metrics.buckets(_ITL)),
        )
        return about != told, about

    def _sample(self) -> Raw:
        now = time.monotonic()
        if now - self._sampled[0] < SAMPLE_S / 2:
            return self._sampled[1]
        stats = self._engine.stats
        sample = Sample(
            at=round(time.time(), 3),
            state=self._engine.status().state,
            running=stats.num_running,
            waiting=stats.num_waiting,
            queued_tokens=stats.queued_tokens,
            prompt=stats.prompt_tokens,
            output=stats.generation_tokens,
            queries=stats.prefix_queries,
            hits=stats.prefix_hits,
            blocks=stats.num_blocks,
            free=stats.num_free_blocks,
            preemptions=stats.num_preemptions,
            steps=stats.num_steps,
            step_s=round(stats.last_step_s, 6),
            ttft=_counts(self._metrics.buckets(_TTFT)),
            itl=_counts(self._metrics.buckets(_ITL)),
        )
        self._sampled = (now, Raw(_encode(sample)))
        return self._sampled[1]

    def _call_rows(self) -> list[CallRow]:
        """The newest calls that the engine has been asked."""
        busy = [one for one in self._calls if one.requests]
        return [_row(one) for one in busy[-MAX_CALLS:]]


def _row(call: Running) -> CallRow:
    usages = [generation.usage for generation in call.generations]
    return CallRow(
        id=call.id,
        tenant=call.tenant,
        route=call.route,
        created=call.created,
        choices=len(call.requests),
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        max_tokens=sum(request.max_tokens for request in call.requests),
    )


def _bounds(buckets: Iterable[tuple[float, int]]) -> tuple[float, ...]:
    return tuple(bound for bound, _ in list(buckets)[:-1])


def _counts(buckets: Iterable[tuple[float, int]]) -> tuple[int, ...]:
    return tuple(count for _, count in buckets)


def _tell_bug(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("the console has no steps any more", exc_info=error)
