"""One bad request fails alone: a step that throws is run again in halves until it is known whose fault it is.

Runs are repeatable: a runner keeps nothing of one that threw. What a half computes is what the whole would have computed,
so those who are not at fault do not notice. When nobody gets through, either all of them are at fault or the machine is; one
token of nobody's, through the model and the sampler, tells the two apart. Knows slices; knows neither tensors nor grammars.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.core.errors import NOTHING_WORKS, EngineError
from octavo.core.log import get_logger
from octavo.core.plan import Decodes, Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import SliceResult, StepResult
from octavo.engine.epochs import ForeignBlocks
from octavo.engine.faults import Fault, Faults, phase_of
from octavo.engine.flight import Pending
from octavo.engine.repro import Repros, repro_of

logger = get_logger(__name__)

Results = Sequence[SliceResult]

_TRIES = 2
"""Of a step in which nothing works; what is out of memory for a moment may not be in the next."""
_MOST_FILES = 8
"""Repro files of one step."""


class KnownRows(Protocol):
    """What a runner knows of a row."""

    @property
    def requests(self) -> dict[int, Request]:
        """By row."""
        ...

    @property
    def births_R(self) -> Any:
        """How often each row has changed hands, int64 [R]."""
        ...

    def token_ids(self, row: int) -> tuple[int, ...]:
        """Prompt and output so far."""
        ...

    def is_known(self, piece: Slice) -> bool:
        """Whether all tokens of a slice are known."""
        ...


class StepRunner(Protocol):
    """Executes plans."""

    faults: Faults
    """Rows at fault beyond doubt: they could not begin, or threw, or have no sound answer, by themselves."""
    phase: str
    """What the last run was doing."""

    @property
    def rows(self) -> KnownRows:
        """Of the running sequences."""
        ...

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says once: rows that ended, that begin, new blocks, copies."""
        ...

    def run(self, slices: Sequence[Slice]) -> Results:
        """Compute some of the plan's slices. When it throws, nothing is kept and any of them may be run again."""
        ...

    def probe(self) -> None:
        """Compute one token of nobody's; throws where not even that works."""
        ...


class AheadRunner(StepRunner, Protocol):
    """One that can be told of a step before the results of the one before it are there."""

    def launch(self, slices: Sequence[Slice], *, is_ahead: bool = False) -> Pending:
        """Begin to compute slices; `take` has the results."""
        ...

    def take(self, pending: Pending) -> Results:
        """Results of slices that were launched, in the order of launches."""
        ...

    def drop(self, pending: Pending) -> None:
        """Forget slices that were launched, once the device is done with them."""
        ...


@dataclass(slots=True, eq=False)
class Flight:
    """A step that was begun. `outcome`: None of one that has to be run again, its slices as far as they are still there."""

    plan: StepPlan
    slices: Sequence[Slice]
    begun_badly: dict[int, Fault]
    outcome: Pending | Results | Exception | None
    births_S: Any
    """Beside `slices`, int64 [S]: whose rows they were; None where nothing can come in between."""
    begun: float

    @property
    def is_ahead(self) -> bool:
        """Whether the next step may be begun before this one is finished."""
        return isinstance(self.outcome, Pending) and self.outcome.is_ahead


class _Found:
    """What became of the slices of a step so far, by row."""

    def __init__(self, faults: dict[int, Fault]) -> None:
        self.results: dict[int, SliceResult] = {}
        self.faults = dict(faults)

    @property
    def is_nobody_through(self) -> bool:
        """Whether something threw and no slice has a result."""
        return not self.results and any(fault.is_thrown for fault in self.faults.values())


class Isolator:
    """Runs plans on a runner. Owner: the engine."""

    def __init__(self, runner: StepRunner, repros: Repros) -> None:
        self._runner = runner
        self._repros = repros
        self._finished = 0.0
        self.is_whole = True
        """Whether the last plan ran as it was, in one go."""

    def run(self, plan: StepPlan) -> StepResult:
        """Results of every slice of the plan; a slice at fault has an error.

        Raises:
            EngineError: nothing works any more; nobody is to blame, and the process has to be started anew.
        """
        return self.finish(self.begin(plan))

    def begin(self, plan: StepPlan, ahead: AheadRunner | None = None) -> Flight:
        """Take a plan over and run it; with `ahead`, only launch it. `finish` must follow for each, in order."""
        begun = time.perf_counter()
        runner, slices = self._runner, plan.slices
        runner.update(plan)
        begun_badly = self._own_faults() if runner.faults else {}
        if begun_badly:
            slices = tuple(piece for piece in slices if piece.row not in begun_badly)
        if ahead is None or not slices:
            return Flight(plan, slices, begun_badly, self._attempt(slices), None, begun)
        row_S = slices.row_S if isinstance(slices, Decodes) else [piece.row for piece in slices]
        births_S = ahead.rows.births_R[row_S]  # a copy
        return Flight(plan, slices, begun_badly, self._launch(ahead, slices), births_S, begun)

    def _launch(self, ahead: AheadRunner, slices: Sequence[Slice]) -> Pending | Exception:
        try:
            return ahead.launch(slices, is_ahead=True)
        except Exception as error:  # edge of the task: as `_attempt`
            ahead.faults.clear()
            return error

    def finish(
        self, flight: Flight, ahead: AheadRunner | None = None, behind: Flight | None = None
    ) -> StepResult:
        """Results of a plan that was begun, as `run`. `behind` was begun after it: where this one throws, that one is told
        to be run again, because it took its inputs from here.
        """
        plan, begun_badly = flight.plan, flight.begun_badly
        slices, runner = flight.slices, self._runner
        if isinstance(flight.outcome, Pending):
            outcome: Results | Exception | None = self._taken(flight.outcome, ahead, behind)
        else:
            outcome = flight.outcome
        if flight.births_S is not None and (outcome is None or isinstance(outcome, Exception)):
            slices = self._still_there(flight)
            outcome = self._attempt(slices) if outcome is None else outcome
        assert outcome is not None, "it was run"
        is_partial = len(slices) < len(plan.slices)
        self.is_whole = False
        if isinstance(outcome, Exception) or is_partial or begun_badly or runner.faults:
            results = self._settle(plan, slices, outcome, begun_badly)
        else:
            self.is_whole, results = True, outcome
        now = time.perf_counter()
        begun = max(flight.begun, self._finished)
        self._finished = now
        return StepResult(step=plan.step, slices=results, elapsed_s=now - begun)

    def _taken(
        self, pending: Pending, ahead: AheadRunner | None, behind: Flight | None
    ) -> Results | Exception:
        assert ahead is not None, "it was launched"
        try:
            return ahead.take(pending)
        except Exception as error:  # edge of the task: as `_attempt`
            ahead.faults.clear()
            if behind is not None and isinstance(behind.outcome, Pending):
                self._drop(ahead, behind.outcome)
                behind.outcome = None
            return error

    def _drop(self, ahead: AheadRunner, pending: Pending) -> None:
        try:
            ahead.drop(pending)
        except (
            Exception
        ) as error:  # edge of the task: it is run again, and what is wrong shows then
            logger.warning("a step that was launched ahead threw, too: %s", error)

    def _still_there(self, flight: Flight) -> Sequence[Slice]:
        """The slices whose rows are their sequences' still and whose tokens are all known: they can be run again."""
        rows = self._runner.rows
        return tuple(
            piece
            for piece, birth in zip(flight.slices, flight.births_S, strict=True)
            if rows.births_R[piece.row] == birth and rows.is_known(piece)
        )

    def _attempt(self, slices: Sequence[Slice]) -> Results | Exception:
        if not slices:
            return ()
        try:
            return self._runner.run(slices)
        except Exception as error:  # edge of the task: halves will show whose it is
            self._runner.faults.clear()
            return error

    def _settle(
        self,
        plan: StepPlan,
        slices: Sequence[Slice],
        outcome: Results | Exception,
        begun_badly: dict[int, Fault],
    ) -> Results:
        """Results of a step in which something is wrong.

        Where nobody gets through and a token of nobody's does not either, twice over, the requests are not to blame. Nor is
        one for what happened once: who was alone in the step is run again, as halves of others are.
        """
        if len(slices) == 1 and isinstance(outcome, Exception):
            outcome = self._attempt(slices)
        for _ in range(_TRIES):
            found = _Found(begun_badly)
            self._sort(slices, outcome, found)
            cause = self._probe() if found.is_nobody_through else None
            if cause is None:
                return self._results(plan, found, is_partial=len(slices) < len(plan.slices))
            outcome = self._attempt(slices)
        logger.critical("step %d: nothing works any more", plan.step, exc_info=cause)
        raise EngineError(
            f"all {len(plan.slices)} requests of step {plan.step} threw, {_TRIES} times over, and so did one token "
            f"of nobody's: {type(cause).__name__}: {cause}",
            code=NOTHING_WORKS,
            fix="The model, its kernels or the device are broken, and no request is at fault; the traceback is above.",
        ) from cause

    def _sort(self, slices: Sequence[Slice], outcome: Results | Exception, found: _Found) -> None:
        """Add what became of `slices` to `found`; where they threw together, by running halves of them."""
        if isinstance(outcome, ForeignBlocks):
            found.faults.update(dict.fromkeys(outcome.rows, Fault("prepare", outcome)))
            rest = tuple(piece for piece in slices if piece.row not in outcome.rows)
            self._sort(rest, self._attempt(rest), found)
        elif not isinstance(outcome, Exception):
            found.results.update({result.row: result for result in outcome})
            found.faults.update(self._own_faults())
        elif len(slices) == 1:
            phase = phase_of(outcome, self._runner.phase)
            found.faults[slices[0].row] = Fault(phase, outcome)
        else:
            middle = len(slices) // 2
            for half in (slices[:middle], slices[middle:]):
                self._sort(half, self._attempt(half), found)

    def _own_faults(self) -> dict[int, Fault]:
        faults = dict(self._runner.faults)
        self._runner.faults.clear()
        return faults

    def _probe(self) -> Exception | None:
        try:
            self._runner.probe()
        except Exception as error:  # edge of the task: that it throws is the answer
            return error
        return None

    def _results(self, plan: StepPlan, found: _Found, *, is_partial: bool) -> Results:
        for piece in plan.slices:  # of a sequence that is gone: nobody will ask
            found.results.setdefault(piece.row, SliceResult(row=piece.row))
        if not found.faults and not is_partial:
            logger.warning("step %d threw once and not in parts; nobody fails for it", plan.step)
        for number, (row, fault) in enumerate(found.faults.items()):
            request = self._runner.rows.requests[row]
            info = fault.info(request)
            found.results[row] = SliceResult(row=row, error=info)
            path = None
            if number < _MOST_FILES:
                known = self._runner.rows.token_ids(row)
                path = self._repros.write(repro_of(plan, row, request, known, fault, info))
            logger.error(
                "request %s failed alone in step %d: %s, %s%s; repro file: %s",
                *(request.id, plan.step, info.code, fault.phase, fault.where),
                path or "none",
            )
        return tuple([found.results[piece.row] for piece in plan.slices])
