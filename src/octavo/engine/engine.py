"""The loop: drain -> schedule -> run -> apply -> emit. Sleeps on the socket when there is nothing to do."""

from __future__ import annotations

import time
from typing import Protocol

from octavo.core.errors import ErrorInfo, OctavoError
from octavo.core.log import get_logger
from octavo.core.plan import StepPlan
from octavo.core.request import Request
from octavo.core.result import Event, Failed, SliceResult, StepResult
from octavo.engine.grammars import GrammarDesk
from octavo.engine.ipc import (
    Cancel,
    Events,
    FromEngine,
    ResetPrefixCache,
    Shutdown,
    Submit,
    ToEngine,
    UseVocabulary,
)
from octavo.meter.steplog import StepLog
from octavo.scheduler.scheduler import Scheduler

logger = get_logger(__name__)


class Link(Protocol):
    """The engine's end of the socket."""

    def receive(self, *, wait: bool) -> list[ToEngine]:
        """Messages that have come; with `wait`, at least one, or ConnectionError when the client is gone."""
        ...

    def send(self, message: FromEngine) -> None:
        """Send without waiting for a slow reader."""
        ...


class StepRunner(Protocol):
    """Executes plans."""

    def run(self, plan: StepPlan) -> StepResult:
        """Results of every slice of the plan."""
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
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.link = link
        self.steps = steps
        self.grammars = grammars
        self.is_stopping = False

    def serve(self) -> None:
        """Run until told to stop.

        Raises:
            ConnectionError: the client is gone.
        """
        while not self.is_stopping:
            self.step()

    def step(self) -> None:
        """One turn of the loop."""
        events = self._drain(wait=not (self.scheduler.has_work or self.grammars.is_busy))
        if self.grammars.is_busy:
            events += self._admit_built()
        now = time.monotonic()
        events += self.scheduler.expire(now)
        plan = self.scheduler.schedule(now)
        if plan is not None:
            result = self._run(plan)
            self.steps.add(plan, result)
            events += self.scheduler.apply(plan, result, time.monotonic())
        self.grammars.forget_ended(events)
        if events or plan is not None:
            self.link.send(Events(events=tuple(events), stats=self.scheduler.stats()))

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
            to.add(request)
        except OctavoError as error:
            return [Failed(id=request.id, error=error.info())]
        return []

    def _cancel(self, request_id: str) -> list[Event]:
        """End a request wherever it stands; one that waits for its grammar by way of the scheduler, like all others."""
        waiting = self.grammars.cancel(request_id)
        refused = [] if waiting is None else self._add(waiting, self.scheduler)
        return refused or self.scheduler.cancel(request_id)

    def _admit_built(self) -> list[Event]:
        """Hand over to the scheduler what has its grammar; with nothing else to do, wait for it."""
        ready, failed = self.grammars.take(wait_for_one=not self.scheduler.has_work)
        events: list[Event] = list(failed)
        for request in ready:
            events += self._add(request, self.scheduler)
        return events

    def _run(self, plan: StepPlan) -> StepResult:
        """Run a plan; when a step throws, its requests fail and the engine goes on with the others."""
        try:
            return self.runner.run(plan)
        except Exception as error:  # edge of the task: a step's failure must not end the engine
            logger.exception("step %d failed", plan.step)
            info = ErrorInfo(
                code="step_failed",
                message=f"the step that ran this request failed: {type(error).__name__}: {error}",
                status=500,
                fix="Send the request again; the engine's log has the traceback.",
            )
            slices = tuple(SliceResult(row=piece.row, error=info) for piece in plan.slices)
            return StepResult(step=plan.step, slices=slices)
