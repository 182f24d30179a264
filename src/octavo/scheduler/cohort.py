"""The running sequences while all of them decode, as columns: a step like the one before costs no look at each of them.

What it plans and what it makes of results is what `Scheduler` does sequence by sequence; where that would be anything
but the plain case (blocks do not suffice, someone ends, someone's prompt is still being booked) it declines, having
changed nothing, and the sequences are gone through one by one. `tests/sim` compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence as Ordered
from itertools import repeat

import numpy as np

from octavo.cache.groups import KVCache
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.plan import Decodes, Slice
from octavo.core.result import Chosen, SliceResult, TokenOut
from octavo.core.sequence import Sequence
from octavo.scheduler.room import Room

_no_more = (repeat(None), repeat(None), repeat(0), repeat(None))
"""Of a `TokenOut`: log-probabilities twice, what its first tokens say."""


class Cohort:
    """One membership. Owner: the scheduler, which drops it when anybody comes or leaves, or a step was not plain."""

    def __init__(self, sequences: list[Sequence], num_moves: int) -> None:
        """`sequences`: all that run, one token pending each. `num_moves`: of `Places`, by which it is known to hold still."""
        self.num_moves = num_moves
        self.sequences = sequences
        self.decodes: Decodes | None = None
        """The step that was planned and has no results yet."""
        self._rows = tuple([s.row for s in sequences])
        self._row_S = np.array(self._rows, np.int64)
        self._start_S = np.array([s.num_computed for s in sequences], np.int64)
        self._room_S = np.array([s.room for s in sequences], np.int64)
        self._ids = [s.request.id for s in sequences]
        self._context = int(self._start_S.sum()) + len(sequences)
        self._to_border = BLOCK_SIZE - int((self._start_S % BLOCK_SIZE).max())
        """Tokens until the first of them fills a block."""
        self._is_at_border = True
        """Whether some may need another block."""
        self._left = min([s.most_tokens - len(s.token_ids) for s in sequences])
        """Tokens until the first of them has all that it may have."""
        self._stop_ids = frozenset[int]().union(*{s.stop_ids for s in sequences})
        self._is_booked = not any(
            [s.first_token_at is None or s.num_computed < s.counted_to for s in sequences]
        )
        """Whether all are past their prompts, their first tokens, and what a preemption has thrown away."""
        gave_way = [s.num_preemptions for s in sequences]
        self._told = (*_no_more, gave_way) if any(gave_way) else ()

    @classmethod
    def of(cls, running: list[Sequence], num_moves: int) -> Cohort | None:
        """Of those that run; None unless each of them has one token pending."""
        if not running or any([len(s.token_ids) - s.num_computed != 1 for s in running]):
            return None
        return cls(list(running), num_moves)

    def plan(self, cache: KVCache, room: Room) -> Decodes | None:
        """A token for each; None where blocks might not suffice for all."""
        grown: dict[int, Slice] = {}
        if self._is_at_border:
            needy = np.flatnonzero(self._start_S >= self._room_S).tolist()
            if needy and (
                room.reserved or any([pool.num_free < len(needy) for pool in cache.pools])
            ):
                return None
            if needy and cache.pools:
                grown = self._grow(needy, cache)
        self.decodes = Decodes(self._rows, self._row_S, self._start_S, self._context, grown)
        return self.decodes

    def _grow(self, needy: list[int], cache: KVCache) -> dict[int, Slice]:
        """The slices of those whose last block is full, with another block of each group."""
        sequences = [self.sequences[index] for index in needy]
        found = cache.extend_each(sequences)
        self._room_S[needy] += BLOCK_SIZE
        return {
            index: Slice(
                row=sequence.row,
                start=sequence.num_computed,
                count=1,
                sample=True,
                new_blocks=blocks,
                new_epochs=epochs,
            )
            for index, sequence, (blocks, epochs) in zip(needy, sequences, found, strict=True)
        }

    def take(
        self, results: Ordered[SliceResult], cache: KVCache, now: float
    ) -> list[TokenOut] | None:
        """Results of the step planned last: everyone goes on by a token. None where that is not so."""
        if not isinstance(results, Chosen) or not self._is_booked or self._left <= 1:
            return None
        token_ids = results.token_ids
        if not self._stop_ids.isdisjoint(token_ids):
            return None
        self.decodes = None
        self._left -= 1
        self._context += len(token_ids)
        self._start_S = start_S = self._start_S + 1
        for sequence, start, token_id in zip(
            self.sequences, start_S.tolist(), token_ids, strict=True
        ):
            sequence.token_ids.append(token_id)
            sequence.num_computed = start
            sequence.last_token_at = now
        self._to_border -= 1
        self._is_at_border = self._to_border == 0
        if self._is_at_border:
            used_S = start_S % BLOCK_SIZE
            self._to_border = BLOCK_SIZE - int(used_S.max())
            for index in np.flatnonzero(used_S == 0).tolist():
                cache.publish(self.sequences[index])
        if cache.has_windows:
            for sequence in self.sequences:
                cache.slide(sequence)
        return list(map(TokenOut, self._ids, zip(token_ids, strict=True), *self._told))
