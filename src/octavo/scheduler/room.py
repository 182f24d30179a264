"""Whether there are blocks: for who runs, for who wants to start, beside what is reserved. Knows no order."""

from __future__ import annotations

from octavo.cache.groups import KVCache, Match
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.sequence import Sequence
from octavo.scheduler.growth import Growth
from octavo.scheduler.limits import MAX_PREEMPTIONS, WATERMARK, Limits

_RETRY_STEPS = 8
"""Steps after which a start that was refused is looked at again, when nobody has ended and no window has let go
of more than was taken: to look at a long prompt costs as much as its blocks are many."""

_MOST_LOOKED_AT = 2048
"""Blocks that were hashed in a step to look for them, or were there and did not make a start, after which no other prompt
is looked at in it (3 ms, as of 2026-11 on a core of Zen 5)."""


class Room:
    """Reservations and predictions over a cache. Owner: the scheduler."""

    def __init__(self, cache: KVCache, limits: Limits) -> None:
        self.cache = cache
        self.chunk = limits.max_num_batched_tokens
        self.reserved: dict[str, Sequence] = {}
        self.growth = Growth(cache, self.chunk)
        self._steps = 0
        self._left_at = 0
        self._in_vain = 0
        self._named_before = 0
        self._asked_growth = False
        self._whole = [0 for _ in cache.groups]
        """Per group: blocks that suffice for everything that all who run can become."""

    def begin(self) -> None:
        """A step begins."""
        self._steps += 1
        self._in_vain = 0
        self._named_before = self.cache.num_named
        self.growth.forget_step()

    def has_seen_enough(self) -> bool:
        """Whether this step has spent its time on looking at long prompts; others are looked at in the next."""
        return self._in_vain + self.cache.num_named - self._named_before > _MOST_LOOKED_AT

    def has_refused(self, sequence: Sequence) -> bool:
        """Whether `admits` said no a moment ago, and would again."""
        is_recent = sequence.refused_at > max(self._left_at, self._steps - _RETRY_STEPS)
        return is_recent and self.cache.num_free <= sequence.refused_free

    def admits(self, sequence: Sequence, match: Match, running: list[Sequence]) -> bool:
        """Whether `sequence` may start. Alone it may whenever its known tokens fit."""
        is_in = self._admits(sequence, match, running)
        if not is_in and running:
            sequence.refused_at = self._steps
            sequence.refused_free = self.cache.num_free
            self._in_vain += match.num_tokens // BLOCK_SIZE
        return is_in

    def _admits(self, sequence: Sequence, match: Match, running: list[Sequence]) -> bool:
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
        if self._is_enough_for_all(sequence):
            return True
        self._asked_growth = True
        return self.growth.fits(sequence, match, running)

    def _is_enough_for_all(self, sequence: Sequence) -> bool:
        """Whether there are blocks even if all who run and `sequence` become as long as they may: then nothing has to be
        predicted, which takes a look at everyone who runs.
        """
        own = self.cache.whole_need(sequence, self.chunk)
        pools = self.cache.pools
        return all(
            whole + more <= pool.num_usable
            for whole, more, pool in zip(self._whole, own, pools, strict=True)
        )

    def _count(self, sequence: Sequence, sign: int) -> None:
        own = self.cache.whole_need(sequence, self.chunk)
        self._whole = [whole + sign * more for whole, more in zip(self._whole, own, strict=True)]

    def start(self, sequence: Sequence) -> None:
        """What was admitted last has started; one preempted often enough gets all it can need reserved."""
        self._count(sequence, 1)
        if sequence.num_preemptions >= MAX_PREEMPTIONS:
            self.reserved[sequence.id] = sequence
        if self._asked_growth:
            self.growth.take()
        else:
            self.growth.forget_step()

    def leave(self, sequence: Sequence) -> None:
        """`sequence` runs no more, and its blocks are back."""
        self._count(sequence, -1)
        self.reserved.pop(sequence.id, None)
        self._left_at = self._steps
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

    def twin_is_computing(
        self, sequence: Sequence, num_cached: int, running: list[Sequence]
    ) -> bool:
        """Whether a running sequence is about to compute the block that this one needs behind its first `num_cached` tokens.

        Waiting for it a step or a few saves computing the same prompt twice (n choices, bursts with one system prompt).
        """
        index = num_cached // BLOCK_SIZE
        if not self.cache.looks_up(sequence) or index >= (sequence.num_tokens - 1) // BLOCK_SIZE:
            return False
        return any(
            other.num_computed <= index * BLOCK_SIZE and self.cache.is_alike(sequence, other, index)
            for other in running
        )
