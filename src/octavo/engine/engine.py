"""The loop: drain -> schedule -> run -> apply -> emit. Sleeps on the socket when there is nothing to do."""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

from octavo.core.errors import OctavoError
from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed
from octavo.core.sequence import Sequence
from octavo.engine.grammars import GrammarDesk
from octavo.engine.ipc import (
    Cancel,
    Events,
    FromEngine,
    ResetPrefixCache,
    Shutdown,
    Started,
    Submit,
    ToEngine,
    UseVocabulary,
)
from octavo.engine.isolate import AheadRunner, Flight, Isolator, StepRunner
from octavo.engine.pulse import GRAMMAR_S, Pulse
from octavo.engine.repro import Repros
from octavo.meter.steplog import StepLog
from octavo.scheduler.scheduler import Scheduler


class Link(Protocol):
    """The engine's end of the socket."""

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, at least one, or ConnectionError when the client is gone."""
        ...

    def send(self, message: FromEngine) -> None:
        """Send without waiting for a slow reader."""
        ...


class _Flight(NamedTuple):
    """A step that was launched and has no results yet."""

    step: Flight
    sequences: list[Sequence]
    """Slice by slice."""


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
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.link = link
        self.steps = steps
        self.grammars = grammars
        self.isolator = Isolator(runner, repros)
        self.pulse = pulse or Pulse()
        self.is_stopping = False
        self.ahead: AheadRunner | None = None
        """Set: a step is planned and launched while the one before it runs."""
        self._flight: _Flight | None = None

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
        is_idle = not (self.scheduler.has_work or self.grammars.is_busy or self._flight)
        if is_idle:
            self.pulse.rest()
        events = self._drain(wait=is_idle)
        if is_idle:
            self.pulse.turn()
        if self.grammars.is_busy:
            events += self._admit_built()
        now = time.monotonic()
        events += self.scheduler.expire(now)
        before = self._flight
        if before is not None:
            self.scheduler.foresee(before.step.plan, before.sequences)
        plan = self.scheduler.schedule(now)
        if plan is not None:
            if plan.starts:
                ids = tuple(start.request.id for start in plan.starts)
                self.link.send(Started(ids=ids, at=now))
            self.pulse.begin(plan)
        if self.ahead is not None:
            events += self._run_ahead(plan, self.ahead)
        elif plan is not None:
            result = self.isolator.run(plan)
            self.pulse.end(is_whole=self.isolator.is_whole)
            self.steps.add(plan, result)
            events += self.scheduler.apply(plan, result, time.monotonic())
        self.grammars.forget_ended(events)
        if events or plan is not None:
            self.link.send(Events(events=tuple(events), stats=self.scheduler.stats()))

    def _run_ahead(self, plan: StepPlan | None, runner: AheadRunner) -> list[Event]:
        """Launch a plan, then take the results of the step before it; and its own, where the next step needs them."""
        before, self._flight = self._flight, None
        begun = None
        if plan is not None:
            begun = _Flight(self.isolator.begin(plan, runner), self.scheduler.planned(plan))
        events = [] if before is None else self._land(before, runner, begun)
        if begun is not None and not begun.step.is_ahead:
            events += self._land(begun, runner, None)
        else:
            self._flight = begun
        return events

    def _land(self, flight: _Flight, runner: AheadRunner, behind: _Flight | None) -> list[Event]:
        plan = flight.step.plan
        result = self.isolator.finish(flight.step, runner, behind and behind.step)
        self.pulse.landed(plan, result.elapsed_s, is_whole=self.isolator.is_whole)
        self.steps.add(plan, result)
        return self.scheduler.apply(plan, result, time.monotonic(), flight.sequences)

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
            case Cancel(ids):
                return [event for request_id in ids for event in self._cancel(request_id)]
            case ResetPrefixCache():
                self.scheduler.cache.forget_prefixes()
            case Shutdown():
                self.is_stopping = True
                names = [*self.scheduler.by_id, *self.grammars.waiting_ids]
                return [event for name in names for event in self._cancel(name)]
        return []

    def _add(self, request: Request, to: GrammarDesk | Scheduler) -> list[Event]:
        try:
            return to.add(request)
        except OctavoError as error:
            return [Failed(id=request.id, error=error.info())]

    def _cancel(self, request_id: str) -> list[Event]:
        """End a request wherever it stands; one that waits for its grammar by way of the scheduler, like all others."""
        waiting = self.grammars.cancel(request_id)
        refused = [] if waiting is None else self._add(waiting, self.scheduler)
        return refused or self.scheduler.cancel(request_id)

    def _admit_built(self) -> list[Event]:
        """Hand over to the scheduler what has its grammar; with nothing else to do, wait for it."""
        is_all = not self.scheduler.has_work
        if is_all:
            self.pulse.turn(GRAMMAR_S)
        ready, failed = self.grammars.take(wait_for_one=is_all)
        if is_all:
            self.pulse.turn()
        events: list[Event] = list(failed)
        for request in ready:
            events += self._add(request, self.scheduler)
        return events
