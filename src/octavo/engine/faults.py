"""What went wrong for one request inside a step, and keeping it to that request. No torch."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, ParamSpec, TypeVar

from octavo.core.errors import ErrorInfo
from octavo.core.request import Request
from octavo.engine.epochs import ForeignBlocks

P = ParamSpec("P")
R = TypeVar("R")

_MOST_CHARS = 300
"""Of an exception's text in an answer; the repro file has all of it."""


class Fault(NamedTuple):
    """Why a row has no result."""

    phase: str
    """What the engine was doing: start, prepare, forward, logits, sample, prompt_logprobs, grammar, take; pool."""
    cause: Exception | ErrorInfo
    """What was thrown, or an error that says all."""

    @property
    def is_thrown(self) -> bool:
        """Whether a computation threw, as opposed to gave a result that may not be used."""
        return not isinstance(self.cause, ErrorInfo | ForeignBlocks)

    @property
    def where(self) -> str:
        """Of what was thrown: its type, and the line; not its text, which may quote a caller."""
        if isinstance(self.cause, ForeignBlocks):
            return f", {self.cause.message}"  # numbers alone
        if isinstance(self.cause, ErrorInfo):
            return ""
        frames = traceback.extract_tb(self.cause.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        return f", {type(self.cause).__name__}{at}"

    def info(self, request: Request) -> ErrorInfo:
        """What its caller is told."""
        if isinstance(self.cause, ErrorInfo):
            return self.cause
        if isinstance(self.cause, ForeignBlocks):
            return ErrorInfo(
                code="kv_epoch",
                message=f"request {request.id} was about to read KV blocks that are not its own; it was stopped before.",
                status=500,
                fix="Send it again. This is a defect of Octavo or of this machine's memory: the engine's log says more.",
            )
        what = f"{type(self.cause).__name__}: {self.cause}"[:_MOST_CHARS]
        return ErrorInfo(
            code="request_fault",
            message=f"request {request.id} made the engine throw ({self.phase}): {what}",
            status=500,
            phase=self.phase,
            fix="It fails alone and may fail again as sent; the engine's log names a file that reproduces it.",
        )


class Faults(dict[int, Fault]):
    """Row -> fault, of rows whose fault it is beyond doubt. Written by a runner, read and cleared by `Isolator`."""

    def guard(
        self, row: int, phase: str, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R | None:
        """`call(...)`, which concerns this row alone; None where it threw."""
        try:
            return call(*args, **kwargs)
        except Exception as error:  # edge of a request: what it throws is its own fault
            self[row] = Fault(phase, error)
            return None


def phase_of(error: BaseException, phase: str) -> str:
    """What was being done: grammars are computed beside the model, so that what they throw comes out elsewhere."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        if ".grammar." in str(trace.tb_frame.f_globals.get("__name__")):
            return "grammar"
        trace = trace.tb_next
    return phase
