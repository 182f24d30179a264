"""One bad request fails alone: a step that throws is run again in halves until it is known whose fault it is.

Runs are repeatable: a runner keeps nothing of one that threw. What a half computes is what the whole would have computed,
so those who are not at fault do not notice. When nobody gets through, either all of them are at fault or the machine is; one
token of nobody's, through the model and the sampler, tells the two apart. Knows slices; knows neither tensors nor grammars.
"""

from __future__ import annotations

import time
from typing import Protocol

from octavo.core.errors import NOTHING_WORKS, EngineError
from octavo.core.log import get_logger
from octavo.core.plan import Slice, StepPlan
from octavo.core.request import Request
from octavo.core.result import SliceResult, StepResult
from octavo.engine.epochs import ForeignBlocks
from octavo.engine.faults import Fault, Faults, phase_of
from octavo.engine.repro import Repros, repro_of

logger = get_logger(__name__)

Results = tuple[SliceResult, ...]

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

    def token_ids(self, row: int) -> tuple[int, ...]:
        """Prompt and output so far."""
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

    def run(self, slices: tuple[Slice, ...]) -> Results:
        """Compute some of the plan's slices. When it throws, nothing is kept and any of them may be run again."""
        ...

    def probe(self) -> None:
        """Compute one token of nobody's; throws where not even that works."""
        ...


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
        self.is_whole = True
        """Whether the last plan ran as it was, in one go."""

    def run(self, plan: StepPlan) -> StepResult:
        """Results of every slice of the plan; a slice at fault has an error.

        Raises:
            EngineError: nothing works any more; nobody is to blame, and the process has to be started anew.
        """
        begun = time.perf_counter()
        runner, slices = self._runner, plan.slices
        runner.update(plan)
        begun_badly = self._own_faults() if runner.faults else {}
        if begun_badly:
            slices = tuple(piece for piece in slices if piece.row not in begun_badly)
        outcome = self._attempt(slices)
        self.is_whole = not (begun_badly or runner.faults or isinstance(outcome, Exception))
        if begun_badly or runner.faults or isinstance(outcome, Exception):
            results = self._settle(plan, slices, outcome, begun_badly)
        else:
            results = outcome
        return StepResult(step=plan.step, slices=results, elapsed_s=time.perf_counter() - begun)

    def _attempt(self, slices: tuple[Slice, ...]) -> Results | Exception:
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
        slices: tuple[Slice, ...],
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
                return self._results(plan, found)
            outcome = self._attempt(slices)
        logger.critical("step %d: nothing works any more", plan.step, exc_info=cause)
        raise EngineError(
            f"all {len(plan.slices)} requests of step {plan.step} threw, {_TRIES} times over, and so did one token "
            f"of nobody's: {type(cause).__name__}: {cause}",
            code=NOTHING_WORKS,
            fix="The model, its kernels or the device are broken, and no request is at fault; the traceback is above.",
        ) from cause

    def _sort(self, slices: tuple[Slice, ...], outcome: Results | Exception, found: _Found) -> None:
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

    def _results(self, plan: StepPlan, found: _Found) -> Results:
        if not found.faults:
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
