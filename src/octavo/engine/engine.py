"""The loop: drain -> schedule -> run -> apply -> emit. Sleeps on the socket when there is nothing to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from msgspec.structs import replace

from octavo.core.errors import OctavoError
from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Advanced, EngineStats, Event, Failed, FinishReason, StepResult
from octavo.core.sequence import Sequence as Progress
from octavo.core.waits import GRAMMAR
from octavo.engine.following import StepFeed
from octavo.engine.grammars import GrammarDesk
from octavo.engine.ipc import (
    Cancel,
    Charged,
    ChargeEvery,
    Events,
    FollowSteps,
    FromEngine,
    ResetPrefixCache,
    Shutdown,
    Started,
    Submit,
    ToEngine,
    UseVocabulary,
    Went,
)
from octavo.engine.isolate import AheadRunner, Flight, Isolator, StepRunner
from octavo.engine.pulse import GRAMMAR_S, Pulse
from octavo.engine.record import Recorder
from octavo.engine.repro import Repros
from octavo.meter.frames import How
from octavo.meter.ledger import Ledger
from octavo.meter.steplog import NO_WAITS, StepLog, Waits
from octavo.scheduler.scheduler import Scheduler

E = TypeVar("E", bound=Sequence[Event])


class Link(Protocol):
    """The engine's end of the socket."""

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, at least one unless woken, or ConnectionError when the client is gone."""
        ...

    def wake(self) -> None:
        """End the sleep in `receive`, or the next one. From any thread."""
        ...

    def send(self, message: FromEngine) -> None:
        """Send without waiting for a slow reader."""
        ...


class _Seen(NamedTuple):
    """What the step log says of the others while a step runs."""

    waits: Waits
    num_free_blocks: int


class _Flight(NamedTuple):
    """A step that was launched and has no results yet."""

    step: Flight
    sequences: list[Progress]
    """Slice by slice."""
    planned: float
    begun: float
    seen: _Seen


class Engine:
    """Owns the scheduler and a runner; speaks through a link."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        link: Link,
        steps: StepLog,
        grammars: GrammarDesk,
        repros: Repros,
        pulse: Pulse | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.link = link
        self.steps = steps
        self.feed = StepFeed(steps)
        self.recorder = recorder
        self._num_blocks = scheduler.cache.num_blocks
        self.grammars = grammars
        grammars.on_built = link.wake
        self.isolator = Isolator(runner, repros)
        self.pulse = pulse or Pulse()
        self.ledger = Ledger()
        self.is_stopping = False
        self._num_deferred = 0
        """Who waited for a grammar when it was last told."""
        self.ahead: AheadRunner | None = None
        """Set: a step is planned and launched while the one before it runs."""
        self._flight: _Flight | None = None
        self.rest: Callable[[], bool] = lambda: False
        """What is done with nothing else to do, for some milliseconds; whether there is more of it."""

    def serve(self) -> None:
        """Run until told to stop.

        Raises:
            ConnectionError: the client is gone.
            EngineError: nothing works any more, whatever the requests.
        """
        while not self.is_stopping:
            self.step()

    def step(self) -> None:
        """One turn of the loop."""
        is_idle = self._is_idle
        if is_idle:
            self.feed.say(self.link.send, at_once=True)
            self.steps.flush()
            self.pulse.rest()
        events = self._drain(wait=is_idle and not self.rest())
        if is_idle:
            self.pulse.turn()
            self.ledger.wake(time.monotonic())
        if self.grammars.is_busy:
            events += self._admit_built()
        now = time.monotonic()
        events += self._recorded("expired", self.scheduler.expire(now), now)
        before = self._flight
        if before is not None:
            self.scheduler.foresee(before.step.plan, before.sequences)
        plan = self.scheduler.schedule(now)
        of_step: Sequence[Event] = ()
        if self.recorder is not None and (plan is not None or before is not None):
            self.recorder.planned(plan, now, is_ahead=self.ahead is not None)
        if plan is not None:
            if plan.starts:
                ids = tuple(start.request.id for start in plan.starts)
                self.link.send(Started(ids=ids, at=now))
            self.pulse.begin(plan)
        if self.ahead is not None:
            of_step = self._run_ahead(plan, self.ahead, now)
        elif plan is not None:
            begun = time.monotonic()
            result = self.isolator.run(plan)
            self.pulse.end(is_whole=self.isolator.is_whole)
            self._log(plan, result, now, begun, self._seen())
            self._account(plan, result)
            ended = time.monotonic()
            of_step = self._recorded("step", self.scheduler.apply(plan, result, ended), ended)
        self._tell(events, of_step, is_step=plan is not None)
        self.feed.say(self.link.send, at_once=self.is_stopping)
        if self.is_stopping:
            self.steps.close()

    def _tell(self, events: list[Event], of_step: Sequence[Event], *, is_step: bool) -> None:
        """Say what happened before a step, and in it: as columns, where each got a token and that is all."""
        if isinstance(of_step, Advanced) and not events:
            self._tell_charges(())
            went = Went(of_step.token_ids, self._stats(), of_step.ids, of_step.num_preemptions)
            self.link.send(went)
            return
        events += of_step
        self.grammars.forget_ended(events)
        if events or is_step or self.grammars.num_waiting != self._num_deferred:
            self._tell_charges(events)
            self.link.send(Events(events=tuple(events), stats=self._stats()))

    def _recorded(self, how: How, events: E, now: float) -> E:
        """What the scheduler said, written down where a record is kept."""
        if self.recorder is not None:
            self.recorder.ended(how, events, now)
        return events

    def _seen(self) -> _Seen:
        """Who waits and what is free, after a plan was made and before anything else was planned or applied."""
        scheduler = self.scheduler
        waits = NO_WAITS
        if scheduler.accounts.num_waiting or self.grammars.is_busy:
            reasons = scheduler.waits.reasons(scheduler.accounts.num_waiting)
            if self.grammars.is_busy:
                # In front: the last is what all wait for of whom nothing is said.
                reasons = ((GRAMMAR, len(self.grammars.waiting_ids)), *reasons)
            waits = Waits(reasons, scheduler.waits.heads)
        return _Seen(waits, scheduler.cache.num_free)

    def _log(
        self, plan: StepPlan, result: StepResult, planned: float, begun: float, seen: _Seen
    ) -> None:
        """Into the step log, before what ends with this step has gone."""
        self.steps.add(
            plan,
            result,
            begun,
            planned=planned,
            waits=seen.waits,
            num_blocks=self._num_blocks,
            num_free_blocks=seen.num_free_blocks,
        )

    def _stats(self) -> EngineStats:
        stats = self.scheduler.stats()
        self._num_deferred = self.grammars.num_waiting
        return replace(stats, num_deferred=self._num_deferred) if self._num_deferred else stats

    @property
    def _is_idle(self) -> bool:
        """Whether there is nothing to do until somebody says something."""
        return not (self.scheduler.has_work or self.grammars.is_busy or self._flight)

    def _account(self, plan: StepPlan, result: StepResult) -> None:
        fit = self.scheduler.step_time
        self.ledger.add(plan, result, fit.line if fit.is_fitted else None, time.monotonic())

    def _tell_charges(self, events: Sequence[Event]) -> None:
        charges = self.ledger.due(events, time.monotonic(), is_idle=self._is_idle)
        if charges is not None:
            self.link.send(Charged(charges))

    def _run_ahead(
        self, plan: StepPlan | None, runner: AheadRunner, planned: float
    ) -> Sequence[Event]:
        """Launch a plan, then take the results of the step before it; and its own, where the next step needs them."""
        before, self._flight = self._flight, None
        begun = None
        if plan is not None:
            sequences = self.scheduler.planned(plan)
            at = time.monotonic()
            step = self.isolator.begin(plan, runner)
            begun = _Flight(step, sequences, planned, at, self._seen())
        events: Sequence[Event] = () if before is None else self._land(before, runner, begun)
        if begun is None or begun.step.is_ahead:
            self._flight = begun
            return events
        own = self._land(begun, runner, None)
        return own if before is None else [*events, *own]

    def _land(
        self, flight: _Flight, runner: AheadRunner, behind: _Flight | None
    ) -> Sequence[Event]:
        plan = flight.step.plan
        result = self.isolator.finish(flight.step, runner, behind and behind.step)
        self.pulse.landed(plan, result.elapsed_s, is_whole=self.isolator.is_whole)
        self._log(plan, result, flight.planned, flight.begun, flight.seen)
        self._account(plan, result)
        now = time.monotonic()
        events = self.scheduler.apply(plan, result, now, flight.sequences)
        return self._recorded("step", events, now)

    def _drain(self, *, wait: bool) -> list[Event]:
        events: list[Event] = []
        for message in self.link.receive(wait=wait):
            events += self._handle(message)
        return events

    def _handle(self, message: ToEngine) -> list[Event]:
        match message:
            case UseVocabulary(vocabulary):
                self.grammars.learn(vocabulary)
            case Submit(request):
                return self._add(request, self.grammars if request.grammar else self.scheduler)
            case Cancel(ids, reason):
                return [event for request_id in ids for event in self._cancel(request_id, reason)]
            case ResetPrefixCache():
                self.scheduler.cache.forget_prefixes()
                if self.recorder is not None:
                    self.recorder.forgot()
            case FollowSteps(count):
                self.feed.follow(count)
            case ChargeEvery(seconds):
                self.ledger.every_s = seconds
            case Shutdown():
                self.is_stopping = True
                names = [*self.scheduler.by_id, *self.grammars.waiting_ids]
                return [event for name in names for event in self._cancel(name)]
        return []

    def _add(self, request: Request, to: GrammarDesk | Scheduler) -> list[Event]:
        try:
            events = to.add(request)
        except OctavoError as error:
            return [Failed(id=request.id, error=error.info())]
        if self.recorder is not None and to is self.scheduler:
            self.recorder.arrived(request, events, time.monotonic())
        return events

    def _cancel(self, request_id: str, reason: FinishReason = "abort") -> list[Event]:
        """End a request wherever it stands; one that waits for its grammar by way of the scheduler, like all others."""
        waiting = self.grammars.cancel(request_id)
        refused = [] if waiting is None else self._add(waiting, self.scheduler)
        return refused or self._recorded(
            "cancel", self.scheduler.cancel(request_id, reason), time.monotonic()
        )

    def _admit_built(self) -> list[Event]:
        """Hand over to the scheduler what has its grammar; with nothing else to do, wait for it, or for somebody to speak."""
        events: list[Event] = []
        while True:
            ready, failed = self.grammars.take()
            events += failed
            for request in ready:
                events += self._add(request, self.scheduler)
            if events or self.is_stopping or self._flight or self.scheduler.has_work:
                return events
            if not self.grammars.is_busy:
                return events
            self.pulse.turn(GRAMMAR_S)
            events += self._drain(wait=True)
            self.pulse.turn()
