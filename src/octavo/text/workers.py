"""Threads for texts too long to be handled in an event loop, which know when one of them does not come back.

A thread that hangs in a library cannot be ended, but it can be seen: every job says how long it is, and so how long it
may take. Knows nothing of what the jobs do.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

T = TypeVar("T")

_PATIENCE_S = 1.0
"""What the shortest job may take: a few milliseconds of work on a busy machine."""
_CHAR_S = 10e-6
"""Per character: ten times what tokenizers need (1 us on one 2.5 GHz core), and room for a template's two seconds of
budget in any conversation that could use them."""
_TEMPLATE_S = 3.0


class _Job(NamedTuple):
    begun: float
    allowed_s: float


class TextWorkers:
    """A pool of threads. `run` and `probe` from one event loop's thread; `stuck_s` from any."""

    def __init__(self, num_threads: int | None = None) -> None:
        self.num_threads = num_threads or min(32, (os.cpu_count() or 1) + 4)
        self._threads = ThreadPoolExecutor(self.num_threads, "octavo-text")
        self._running: dict[int, _Job] = {}
        self._numbers = itertools.count()
        self._probe: Future[object] | None = None
        self._probe_number = -1

    def submit(
        self, work: Callable[[], T], num_chars: int, *, has_template: bool = False
    ) -> Future[T]:
        """Begin a job on a text of so many characters."""
        allowed = _PATIENCE_S + _CHAR_S * num_chars + _TEMPLATE_S * has_template
        return self._threads.submit(self._run, next(self._numbers), work, allowed)

    def probe(self, work: Callable[[], object]) -> None:
        """See whether `work`, of next to no text, comes back; nothing happens while the last one is on its way."""
        if self._probe is None or self._probe.done():
            number = self._probe_number = next(self._numbers)
            self._probe = self._threads.submit(self._run, number, work, _PATIENCE_S)

    def stuck_s(self, now: float) -> float:
        """Seconds for which nothing has come through: the probe hangs, or every thread does. 0 when all is well.

        Threads that are busy within what their jobs may take are well, however long the probe has to wait for one.
        `now` is `time.monotonic()`.
        """
        running = dict(self._running)
        probe = running.get(self._probe_number)
        late = 0.0 if probe is None else now - probe.begun
        stuck = late if late > _PATIENCE_S else 0.0
        if len(running) >= self.num_threads:
            # The last of them to pass its limit says how long nothing has come through.
            over = [now - job.begun for job in running.values() if _is_over(job, now)]
            if len(over) >= self.num_threads:
                stuck = max(stuck, min(over))
        return stuck

    def close(self) -> None:
        """Take no more jobs; those that wait are dropped."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, number: int, work: Callable[[], T], allowed_s: float) -> T:
        self._running[number] = _Job(time.monotonic(), allowed_s)
        try:
            return work()
        finally:
            del self._running[number]


def _is_over(job: _Job, now: float) -> bool:
    return now - job.begun > job.allowed_s
