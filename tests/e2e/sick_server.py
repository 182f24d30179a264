"""`octavo serve` whose engine can be made to hang inside a kernel. Run by test_health.py.

usage: sick_server.py FLAGS: the server; its engine's process is this file, run as ENGINE by way of `Popen`.

A prompt that begins with token HOLDS never comes back and keeps the interpreter's lock, one with LOOPS lets go of it, as
the compiled kernels do. Both wait in the C library for a signal that nobody sends: a loop that takes no core from tests
beside it.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from typing import Any

LOOPS, HOLDS = 251, 252
_MODULE = "octavo.engine.worker"


def serve(flags: list[str]) -> int:
    from octavo.tools.cli import main

    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if _MODULE in command:
            at = command.index(_MODULE)
            command = [command[0], __file__, "ENGINE", *command[at + 1 :]]
        return start(command, **options)

    subprocess.Popen = popen  # type: ignore[assignment,misc]  # of this process alone
    return main(["serve", *flags])


def engine(args: list[str]) -> int:
    from octavo.cache.pool import KVPool
    from octavo.core.plan import StepPlan
    from octavo.engine.runner import Runner
    from octavo.engine.worker import main

    waits = {LOOPS: ctypes.CDLL(None).pause, HOLDS: ctypes.PyDLL(None).pause}
    chosen: list[int] = []
    update, layer = Runner.update, KVPool.layer

    def update_and_choose(self: Runner, plan: StepPlan) -> None:
        chosen.extend(start.token_ids[0] for start in plan.starts if start.token_ids[0] in waits)
        update(self, plan)

    def layer_or_hang(self: KVPool, index: int) -> Any:
        if chosen and index == 1:
            waits[chosen[0]]()
        return layer(self, index)

    Runner.update, KVPool.layer = update_and_choose, layer_or_hang  # type: ignore[method-assign]
    return main(args)


if __name__ == "__main__":
    is_engine = sys.argv[1:2] == ["ENGINE"]
    sys.exit(engine(sys.argv[2:]) if is_engine else serve(sys.argv[1:]))
