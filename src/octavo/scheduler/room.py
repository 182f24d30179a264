"""Whether there are blocks: for who runs, for who wants to start, beside what is reserved. Knows no order."""

from __future__ import annotations

from octavo.cache.groups import KVCache, Match
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.sequence import Sequence
from octavo.scheduler.growth import Growth
from octavo.scheduler.limits import MAX_PREEMPTIONS, WATERMARK, Limits

_RETRY_STEPS = 8
"""Steps after which a start refused for predicted growth is looked at again, when nobody has ended meanwhile."""


class Room:
    """Reservations and predictions over a cache. Owner: the scheduler."""

    def __init__(self, cache: KVCache, limits: Limits) -> None:
        self.cache = cache
        self.chunk = limits.max_num_batched_tokens
        self.reserved: dict[str, Sequence] = {}
        self.growth = Growth(cache, self.chunk)
        self._refused = ""
        self._refused_for = 0
        self._asked_growth = False

    def begin(self) -> None:
        """A step begins."""
        self._refused_for -= 1
        self.growth.forget_step()

    def admits(self, sequence: Sequence, match: Match, running: list[Sequence]) -> bool:
        """Whether `sequence` may start. Alone it may whenever its known tokens fit."""
        need = self.cache.admission_need(sequence, match, self.chunk)
        self._asked_growth = False
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            whole = self.cache.whole_need(sequence, self.chunk)
            need = [max(pair) for pair in zip(need, whole, strict=True)]
        elif running:
            need = [
                blocks + int(pool.num_usable * WATERMARK)
                for blocks, pool in zip(need, self.cache.pools, strict=True)
            ]
        if not self.has(sequence, need):
            return False
        if not running or sequence.num_preemptions >= MAX_PREEMPTIONS:
            return True
        if self._refused == sequence.id and self._refused_for > 0:
            return False
        self._asked_growth = True
        if self.growth.fits(sequence, match, running):
            return True
        self._refused, self._refused_for = sequence.id, _RETRY_STEPS
        return False

    def start(self, sequence: Sequence) -> None:
        """What was admitted last has started; one preempted often enough gets all it can need reserved."""
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            self.reserved[sequence.id] = sequence
        if self._asked_growth:
            self.growth.take()
        else:
            self.growth.forget_step()

    def leave(self, sequence: Sequence) -> None:
        """`sequence` runs no more, and its blocks are back."""
        self.reserved.pop(sequence.id, None)
        self._refused_for = 0
        self.growth.forget_step()

    def has(self, sequence: Sequence, need: list[int]) -> bool:
        """Whether `need` blocks per group are free beside what is reserved for others."""
        if not any(need):
            return True
        kept = [0] * len(need)
        for other in self.reserved.values():
            if other is not sequence:
                rest = self.cache.remaining_need(other, self.chunk)
                kept = [a + b for a, b in zip(kept, rest, strict=True)]
        return all(
            blocks + keep <= pool.num_free
            for blocks, keep, pool in zip(need, kept, self.cache.pools, strict=True)
        )

    def twin_is_computing(self, sequence: Sequence, match: Match, running: list[Sequence]) -> bool:
        """Whether a running sequence is about to compute the next block that this one needs.

        Waiting for it a step or a few saves computing the same prompt twice (n choices, bursts with one system prompt).
        """
        index = match.num_tokens // BLOCK_SIZE
        if not self.cache.looks_up(sequence) or index >= (sequence.num_tokens - 1) // BLOCK_SIZE:
            return False
        return any(
            other.num_computed <= index * BLOCK_SIZE and self.cache.is_alike(sequence, other, index)
            for other in running
        )
