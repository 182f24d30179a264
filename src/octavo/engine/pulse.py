"""A page of memory in which the engine's process shows that it lives and moves, read by its parent at no cost.

Two signs. A thread writes the time five times a second: the process is scheduled and its interpreter runs. The loop
writes when it last got on, and how long the next bit may take: a layer of a step, else a turn of the loop. Whoever
reads compares with its own clock (`time.monotonic()` is one clock for all processes of a host), so that a process
that is stopped or loops for ever is seen without its help. Knows nothing of HTTP and nothing of tensors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from octavo.core.plan import Decodes, StepPlan
from octavo.engine.page import ALLOWED, BEAT, FIELDS, MOVED, STEPS, Page
from octavo.scheduler.steptime import context_of

BEAT_S = 0.2
"""Between signs of life; what ten of them cost is below the resolution of an idle process's CPU clock."""
TURN_S = 1.0
"""A turn of the loop, or a layer, whatever was measured: a busy machine may not run a process for so long."""
MARGIN = 8.0
"""A layer may take so many times what layers of such steps took: cores that others use as well, colder caches."""
UNKNOWN_S = 120.0
"""A first step after loading: weights come from disk, libraries set themselves up."""
GRAMMAR_S = 60.0
"""The loop may wait so long for a grammar when there is nothing else to do; building one is limited to a few seconds,
what it needs of the vocabulary is made before the first."""

_count = attrgetter("count")
_CONTEXT_PER_TOKEN = 512
"""Tokens of context whose reading costs no more than one token through the model; in truth it is thousands."""


class Pulse:
    """The engine's hand on the page. Owner: the engine's loop; without a page it writes to its own memory."""

    def __init__(self, page: Page | None = None) -> None:
        self._fields: Any = page.fields if page is not None else [0.0] * FIELDS
        self._pace = Pace()
        self._work: Work | None = None
        self._begun = 0.0
        self._last = 0.0
        self._longest = 0.0
        self.rest()
        self._fields[ALLOWED] = TURN_S
        self._fields[BEAT] = time.monotonic()

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Give signs of life meanwhile, from a thread of its own."""
        is_over = threading.Event()

        def beat() -> None:
            fields = self._fields
            while True:
                fields[BEAT] = time.monotonic()
                if is_over.wait(BEAT_S):
                    return

        thread = threading.Thread(target=beat, name="octavo-pulse", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def rest(self) -> None:
        """There is nothing to do, for as long as it may take."""
        self._fields[MOVED] = 0.0

    def turn(self, allowed_s: float = TURN_S) -> None:
        """There is something to do, and it takes at most so long to get on with it."""
        self._fields[MOVED] = time.monotonic()
        self._fields[ALLOWED] = allowed_s

    def begin(self, plan: StepPlan) -> None:
        """A step begins."""
        work = self._work = Work.of(plan)
        allowed = self._pace.allowed(work)
        now = self._begun = self._last = time.monotonic()
        self._longest = 0.0
        self._fields[MOVED] = now
        self._fields[ALLOWED] = allowed

    def tick(self) -> None:
        """The step got on: its next layer begins."""
        now = time.monotonic()
        self._fields[MOVED] = now
        gap = now - self._last
        self._longest = max(self._longest, gap)
        self._last = now

    def end(self, *, is_whole: bool = True) -> None:
        """The step is done. Later ones are measured by it if it `is_whole`: one that threw took less than it should."""
        self.tick()
        self._fields[ALLOWED] = TURN_S
        self._fields[STEPS] += 1.0
        if self._work is not None and is_whole:
            self._pace.learn(self._work, longest_s=self._longest, total_s=self._last - self._begun)

    def landed(self, plan: StepPlan, elapsed_s: float, *, is_whole: bool) -> None:
        """The results of a step came while the next one, which has begun, runs."""
        self.tick()
        self._fields[STEPS] += 1.0
        if is_whole:
            self._pace.learn(Work.of(plan), longest_s=elapsed_s, total_s=elapsed_s)


class Caches(Protocol):
    """Where a model finds its layers' keys and values."""

    def layer(self, index: int) -> Any:
        """Of one layer."""
        ...


class WatchedCaches:
    """Caches through which a model's layers show that they get on: each asks for its own once."""

    def __init__(self, caches: Caches, pulse: Pulse) -> None:
        self._caches = caches
        self._pulse = pulse

    def layer(self, index: int) -> Any:
        """Keys and values of a layer, which begins now."""
        self._pulse.tick()
        return self._caches.layer(index)


class Work(NamedTuple):
    """What a step's time depends on."""

    is_even: bool
    """One token per sequence: such steps may be replayed as a whole, so that no layer of theirs is seen."""
    tokens: int
    rows: int
    """Rows that are sampled, at most."""
    context: float
    """Tokens of context that are attended to."""

    @classmethod
    def of(cls, plan: StepPlan) -> Work:
        """A plan's. 0.04 us per slice of an even step, of which there may be hundreds."""
        slices = plan.slices
        rows = len(slices)
        if isinstance(slices, Decodes):
            return cls(True, rows, rows, slices.context)
        tokens = sum(map(_count, slices))
        return cls(tokens == rows, tokens, rows, context_of(plan))


@dataclass(slots=True)
class _Record:
    work: Work
    longest_s: float
    total_s: float


class Pace:
    """How long the layers of a step may take, from the steps that were: an upper bound, not a fit.

    Whatever a step's parts cost, per token, per row and per token of context: a step that has k times as much of each
    as another one takes at most k times as long, and so does the longest of its parts. So one measured step bounds all
    others, the better the more it is like them. They are kept by the power of two of their tokens and their context.
    """

    def __init__(self) -> None:
        self._records: dict[tuple[bool, int, int], _Record] = {}

    def allowed(self, work: Work) -> float:
        """Seconds that a step may go without getting on."""
        known = self._records.get(_key(work))
        if known is not None:
            than = known.work
            ratio = max(
                work.tokens / than.tokens, work.rows / than.rows, work.context / than.context
            )
            bound = known.longest_s * max(1.0, ratio)
        elif self._records:
            bound = min(_bound(work, record) for record in self._records.values())
        else:
            return UNKNOWN_S
        return max(TURN_S, MARGIN * bound)

    def learn(self, work: Work, *, longest_s: float, total_s: float) -> None:
        """A step took so long, and the longest of its parts so long."""
        if not work.tokens:
            return
        if work.is_even:
            longest_s = total_s  # the first such step is seen layer by layer, those replayed from it are not
        key = _key(work)
        record = self._records.get(key)
        if record is None:
            self._records[key] = _Record(work, longest_s, total_s)
            return
        # What a busy machine needed is forgotten by and by, in some twenty steps.
        record.work = work
        record.longest_s = max(longest_s, 0.95 * record.longest_s)
        record.total_s = max(total_s, 0.95 * record.total_s)


def _key(work: Work) -> tuple[bool, int, int]:
    return work.is_even, work.tokens.bit_length(), int(work.context).bit_length()


def _bound(work: Work, known: _Record) -> float:
    """What a record of another size says. Context grows with the square of a prompt and costs little, so that by itself
    it would say hours: beside tokens it counts for what both cost together, four times over.
    """
    than = known.work
    seconds = known.longest_s if work.is_even == than.is_even else known.total_s
    both = (work.tokens + work.context / _CONTEXT_PER_TOKEN) / (
        than.tokens + than.context / _CONTEXT_PER_TOKEN
    )
    context = min(work.context / than.context, 4.0 * both)
    return seconds * max(1.0, work.tokens / than.tokens, work.rows / than.rows, context)
