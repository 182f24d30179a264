"""Writes down what a scheduler is told, so that another one can be told the same: requests as they come and go, and what
their blocks are called. Steps are the step log's. No text and no token leaves the engine by this.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed, Finished
from octavo.core.sequence import Sequence as Progress
from octavo.core.steptime import StepTime
from octavo.meter.frames import (
    DIGEST_BYTES,
    Arrived,
    Ended,
    Forgot,
    How,
    Line,
    Machine,
    Named,
    Planned,
)
from octavo.meter.stepfile import StepFile
from octavo.meter.steplog import StepLog
from octavo.scheduler.scheduler import Scheduler


def machine_of(scheduler: Scheduler, model: str, policy: str) -> Machine:
    """What a scheduler is made of."""
    return Machine(
        model=model,
        policy=policy,
        limits=msgspec.to_builtins(scheduler.limits),
        groups=scheduler.cache.groups,
        enable_prefix_caching=scheduler.cache.enable_prefix_caching,
    )


class Recorder:
    """One scheduler's. Owner: the engine, which tells it in the order in which it tells the scheduler."""

    def __init__(self, scheduler: Scheduler, file: StepFile, steps: StepLog) -> None:
        """`steps` writes to `file`; those so far are written before what is said after them."""
        self._settle = steps.settle
        self._note = steps.note
        self._scheduler = scheduler
        self._file = file
        self._left = scheduler.places.left = []
        self._named: dict[int, int] = {}
        self._line = StepTime()

    def arrived(self, request: Request, events: Sequence[Event], now: float) -> None:
        """The scheduler took a request; `events`: what it said at once."""

        def describe(number: int) -> Arrived:
            return Arrived(
                number,
                request.id,
                request.arrived,
                request.num_prompt,
                request.max_tokens,
                request.index,
                request.priority,
                request.tenant,
                request.weight,
                request.adapter,
                request.deadline,
                len(request.resumed),
                request.restarts,
                request.pooling is not None,
                request.needs_every_position,
                now,
            )

        self._settle()
        self._file.arrived(request.id, describe)
        self.ended("add", events, now)

    def ended(self, how: How, events: Sequence[Event], now: float) -> None:
        """Whoever left the scheduler since the last call did so by `how`; `events` are what it said of them."""
        if not self._left:
            return
        self._settle()
        ends = {event.id: event for event in events if isinstance(event, Finished | Failed)}
        for sequence in self._left:
            end = ends.get(sequence.id)
            number = self._file.number_of(sequence.id)
            if end is None or number is None:
                continue
            self._name(sequence, number)
            self._named.pop(number, None)
            reason = "failed" if isinstance(end, Failed) else end.reason
            is_fault = isinstance(end, Failed) and end.error.status >= 500
            frame = Ended(number, how, reason, is_fault, sequence.num_output, now)
            self._file.ended(sequence.id, frame)
        self._left.clear()

    def forgot(self) -> None:
        """Cached prefixes were dropped."""
        self._settle()
        self._file.put(Forgot())

    def planned(self, plan: StepPlan | None, now: float, *, is_ahead: bool) -> None:
        """The scheduler was asked: what those who begin in the step were looked up by. `is_ahead`: it may be asked again
        before the step is logged.
        """
        if is_ahead:
            self._note(Planned(0 if plan is None else plan.step, now))
        if plan is None:
            return
        line = self._scheduler.step_time.line
        if not plan.starts and line is self._line:
            return
        self._settle()
        for start in plan.starts:
            sequence = self._scheduler.by_id[start.request.id]
            number = self._file.number_of(sequence.id)
            if number is not None:
                self._name(sequence, number)
        if line is not self._line:
            self._line = line
            self._file.put(Line(line))

    def _name(self, sequence: Progress, number: int) -> None:
        first = self._named.get(number, 0)
        digests = sequence.hashes[first:]
        if digests:
            self._named[number] = first + len(digests)
            self._file.put(Named(number, first, b"".join([d[:DIGEST_BYTES] for d in digests])))
