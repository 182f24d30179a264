"""A scheduler that starts whatever fits now, so that pools run full and sequences have to give way."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.cache.groups import Match
from octavo.core.sequence import Sequence
from octavo.scheduler.growth import Growth
from octavo.scheduler.scheduler import Scheduler


class NoGrowth(Growth):
    """Predicts that nobody grows."""

    def fits(self, sequence: Sequence, match: Match, running: Iterable[Sequence]) -> bool:
        """Always."""
        return True

    def take(self) -> None:
        """Nothing was asked."""


def overcommit(scheduler: Scheduler) -> None:
    """Have the scheduler spare nothing for growth."""
    scheduler.room.growth = NoGrowth(scheduler.cache, scheduler.limits.max_num_batched_tokens)
