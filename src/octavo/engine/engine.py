"""The loop: drain -> schedule -> run -> apply -> emit. Sleeps on the socket when there is nothing to do."""

from __future__ import annotations

import time
from typing import Protocol

from octavo.core.errors import OctavoError
from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed, StepResult
from octavo.core.waits import GRAMMAR
from octavo.engine.following import StepFeed
from octavo.engine.grammars import GrammarDesk
from octavo.engine.ipc import (
    Cancel,
    Events,
    FollowSteps,
    FromEngine,
    ResetPrefixCache,
    Shutdown,
    Started,
    Submit,
    ToEngine,
    UseVocabulary,
)
from octavo.engine.isolate import Isolator, StepRunner
from octavo.engine.pulse import GRAMMAR_S, Pulse
from octavo.engine.record import Recorder
from octavo.engine.repro import Repros
from octavo.meter.frames import How
from octavo.meter.steplog import NO_WAITS, StepLog, Waits
from octavo.scheduler.scheduler import Scheduler


class Link(Protocol):
    """The engine's end of the socket."""

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, at least one, or ConnectionError when the client is gone."""
        ...

    def send(self, message: FromEngine) -> None:
        """Send without waiting for a slow reader."""
        ...


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
        self.isolator = Isolator(runner, repros)
        self.pulse = pulse or Pulse()
        self.is_stopping = False

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
        is_idle = not (self.scheduler.has_work or self.grammars.is_busy)
        if is_idle:
            self.feed.say(self.link.send, at_once=True)
            self.steps.flush()
            self.pulse.rest()
        events = self._drain(wait=is_idle)
        if is_idle:
            self.pulse.turn()
        if self.grammars.is_busy:
            events += self._admit_built()
        now = time.monotonic()
        events += self._recorded("expired", self.scheduler.expire(now), now)
        plan = self.scheduler.schedule(now)
        if plan is not None:
            if plan.starts:
                ids = tuple(start.request.id for start in plan.starts)
                self.link.send(Started(ids=ids, at=now))
            self.pulse.begin(plan)
            begun = time.monotonic()
            result = self.isolator.run(plan)
            self.pulse.end(is_whole=self.isolator.is_whole)
            self._log(plan, result, now, begun)
            ended = time.monotonic()
            events += self._recorded("step", self.scheduler.apply(plan, result, ended), ended)
        self.grammars.forget_ended(events)
        if events or plan is not None:
            self.link.send(Events(events=tuple(events), stats=self.scheduler.stats()))
        self.feed.say(self.link.send, at_once=self.is_stopping)
        if self.is_stopping:
            self.steps.close()

    def _recorded(self, how: How, events: list[Event], now: float) -> list[Event]:
        """What the scheduler said, written down where a record is kept."""
        if self.recorder is not None:
            self.recorder.ended(how, events, now)
        return events

    def _log(self, plan: StepPlan, result: StepResult, planned: float, begun: float) -> None:
        """Into the step log, before what ends with this step has gone."""
        scheduler = self.scheduler
        if self.recorder is not None:
            self.recorder.planned(plan)
        waits = NO_WAITS
        if scheduler.accounts.num_waiting or self.grammars.is_busy:
            reasons = scheduler.waits.reasons(scheduler.accounts.num_waiting)
            if self.grammars.is_busy:
                # In front: the last is what all wait for of whom nothing is said.
                reasons = ((GRAMMAR, len(self.grammars.waiting_ids)), *reasons)
            waits = Waits(reasons, scheduler.waits.heads)
        self.steps.add(
            plan,
            result,
            begun,
            planned=planned,
            waits=waits,
            num_blocks=self._num_blocks,
            num_free_blocks=scheduler.cache.num_free,
        )

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
                if self.recorder is not None:
                    self.recorder.forgot()
            case FollowSteps(count):
                self.feed.follow(count)
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

    def _cancel(self, request_id: str) -> list[Event]:
        """End a request wherever it stands; one that waits for its grammar by way of the scheduler, like all others."""
        waiting = self.grammars.cancel(request_id)
        refused = [] if waiting is None else self._add(waiting, self.scheduler)
        return refused or self._recorded(
            "cancel", self.scheduler.cancel(request_id), time.monotonic()
        )

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
