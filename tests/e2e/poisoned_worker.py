"""An engine process that a certain token kills: what a defect in native code looks like from outside."""

import os
import signal
import sys

from octavo.core.plan import Slice
from octavo.core.result import SliceResult
from octavo.engine import worker
from octavo.engine.runner import Runner

POISON = 319
"""A prompt that ends with it."""

_run = Runner.run


def run(self: Runner, slices: tuple[Slice, ...]) -> tuple[SliceResult, ...]:
    for piece in slices:
        if piece.sample and self.rows.requests[piece.row].token_ids[-1] == POISON:
            os.kill(os.getpid(), signal.SIGSEGV)
    return _run(self, slices)


if __name__ == "__main__":
    Runner.run = run  # type: ignore[method-assign]
    sys.exit(worker.main(sys.argv[1:]))
