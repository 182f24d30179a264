"""Where start-up time went: phases that follow each other without gaps, so that they sum to the whole.

Knows clocks and names; does not know what the phases are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Part(NamedTuple):
    """One named share of the whole, in seconds."""

    name: str
    seconds: float


class Timeline:
    """Phases in order. Starting one ends the one before; what lies before the first is `unexplained`.

    Owner: whoever starts up. `started` may lie before construction (the process's own start).
    """

    def __init__(
        self, started: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._started = clock() if started is None else started
        self._parts: list[Part] = []
        self._open: str | None = None
        self._open_since = self._started
        self._ended: float | None = None

    def phase(self, name: str) -> None:
        """Begin phase `name` now; the open one ends here. A name that comes again adds up."""
        now = self._clock()
        self._close(now)
        self._open, self._open_since, self._ended = name, now, None

    def explain(self, parts: Iterable[tuple[str, float]]) -> None:
        """Split the open phase: `parts` (name, seconds) happened inside it; the rest keeps its name.

        For work done in another process, which reports its own phases when it is done.
        """
        for name, seconds in parts:
            self._parts.append(Part(name, seconds))
            self._open_since += seconds

    def stop(self) -> None:
        """End the open phase and the whole."""
        now = self._clock()
        self._close(now)
        self._open, self._ended = None, now

    @property
    def total(self) -> float:
        """Seconds from start to stop (or to now, while it runs)."""
        return (self._clock() if self._ended is None else self._ended) - self._started

    def parts(self) -> list[Part]:
        """Closed phases in order of first appearance, equal names added up."""
        sums: dict[str, float] = {}
        for name, seconds in self._parts:
            sums[name] = sums.get(name, 0.0) + seconds
        return [Part(name, seconds) for name, seconds in sums.items()]

    @property
    def unexplained(self) -> float:
        """The whole less its parts."""
        return self.total - sum(part.seconds for part in self._parts)

    def line(self) -> str:
        """One line: `imports 0.91 | config 0.10 | ... | unexplained 0.00 = 3.20 s`."""
        shown = [f"{part.name} {part.seconds:.2f}" for part in self.parts()]
        shown.append(f"unexplained {self.unexplained:.2f}")
        return f"{' | '.join(shown)} = {self.total:.2f} s"

    def table(self) -> str:
        """One row per phase with its share of the whole; the last row is the sum."""
        total = self.total or 1e-9
        rows = [*self.parts(), Part("unexplained", self.unexplained), Part("total", self.total)]
        width = max(len(row.name) for row in rows)
        return "\n".join(
            f"{row.name:<{width}}  {row.seconds:8.2f} s  {100 * row.seconds / total:5.1f} %"
            for row in rows
        )

    def _close(self, now: float) -> None:
        if self._open is not None:
            self._parts.append(Part(self._open, now - self._open_since))
