"""Why those who wait did not start in a step: a verdict of each head that was looked at, and one for all others."""

from __future__ import annotations

from octavo.core.sequence import Sequence
from octavo.core.waits import BEHIND, HELD_BACK, LAST_ROW, NO_BUDGET, NO_ROOM, NO_ROW
from octavo.scheduler.turns import Verdict

_REASONS = {
    Verdict.HELD_BACK: HELD_BACK,
    Verdict.NO_ROW: NO_ROW,
    Verdict.LAST_ROW: LAST_ROW,
    Verdict.NO_ROOM: NO_ROOM,
    Verdict.NO_BUDGET: NO_BUDGET,
}


class Waits:
    """Of one step. Owner: the scheduler."""

    def __init__(self) -> None:
        self._heads: dict[str, str] = {}
        self._rest = BEHIND

    def begin(self, *, stalled: bool) -> None:
        """A step begins; `stalled`: blocks ran out for those who run, so that nobody starts."""
        if self._heads:
            self._heads = {}
        self._rest = NO_ROOM if stalled else BEHIND

    def note(self, head: Sequence, verdict: Verdict) -> None:
        """What became of a head that was looked at."""
        if verdict is not Verdict.STARTED:
            self._heads[head.id] = _REASONS[verdict]

    def fill(self) -> None:
        """The step is full before all were looked at."""
        self._rest = NO_BUDGET

    @property
    def heads(self) -> tuple[tuple[str, str], ...]:
        """Who was looked at in vain, and why."""
        return tuple(self._heads.items()) if self._heads else ()

    def reasons(self, num_waiting: int) -> tuple[tuple[str, int], ...]:
        """How many wait for what, of `num_waiting`; the last is what all who were not looked at wait for."""
        if not num_waiting:
            return ()
        counts: dict[str, int] = {}
        for reason in self._heads.values():
            counts[reason] = counts.get(reason, 0) + 1
        rest = counts.pop(self._rest, 0) + num_waiting - len(self._heads)
        return (*counts.items(), (self._rest, rest))
