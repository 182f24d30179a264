"""The running sequences while all of them decode, as columns: a step like the one before costs no look at each of them.

What it plans and what it makes of results is what `Scheduler` does sequence by sequence; where that would be anything
but the plain case (blocks do not suffice, someone ends, someone's prompt is still being booked) it declines, having
changed nothing, and the sequences are gone through one by one. `tests/sim` compares the two.

Tokens are kept here, step by step, and a sequence is told of its own when it fills a block, or when anybody is about to
look at it (`catch_up`): to write into hundreds of sequences in every step takes longer than all else about them.

A step may be planned while the one before it has no results (`foresee`). Whoever looks at a sequence then is to find an
UNKNOWN token, as `ahead.py` has it; once one has looked, that one step's results are gone through one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Ordered

import numpy as np

from octavo.cache.groups import KVCache
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.plan import Decodes, NewBlocks, Slice
from octavo.core.result import Advanced, Chosen, SliceResult
from octavo.core.sequence import UNKNOWN, Sequence
from octavo.scheduler.room import Room


class Cohort:
    """One membership. Owner: the scheduler, which drops it when anybody comes or leaves, or a step was not plain."""

    def __init__(self, sequences: list[Sequence], num_moves: int) -> None:
        """`sequences`: all that run, one token pending each. `num_moves`: of `Places`, by which it is known to hold still."""
        self.num_moves = num_moves
        self.sequences = sequences
        self.decodes: Decodes | None = None
        """The step that was planned last, until it has results."""
        self._before: Decodes | None = None
        """The step before it, foreseen: it has no results yet either."""
        self._rows = tuple([s.row for s in sequences])
        self._row_S = np.array(self._rows, np.int64)
        self._start_S = np.array([s.num_computed for s in sequences], np.int64)
        """Where the next step begins; what is foreseen counts as computed."""
        self._room_S = np.array([s.room for s in sequences], np.int64)
        self._ids = tuple([s.request.id for s in sequences])
        self._taken: deque[Ordered[int]] = deque(maxlen=BLOCK_SIZE)
        """Tokens of the last steps, beside `sequences`; who fills a block catches up, so that nobody lacks more."""
        self._taken_at = 0.0
        self._is_behind = False
        self._context = int(self._start_S.sum()) + len(sequences)
        self._to_border = self._until_filled()
        """Results until the first of them fills a block."""
        self._to_full = 0
        """Steps until some may need another block."""
        self._left = min([s.most_tokens - len(s.token_ids) for s in sequences])
        """Tokens until the first of them has all that it may have."""
        self._stop_ids = frozenset[int]().union(*{s.stop_ids for s in sequences})
        self._is_booked = self._are_booked()
        """Whether all are past their prompts, their first tokens, and what a preemption has thrown away."""
        gave_way = tuple([s.num_preemptions for s in sequences])
        self._gave_way = gave_way if any(gave_way) else ()

    @classmethod
    def of(cls, running: list[Sequence], num_moves: int) -> Cohort | None:
        """Of those that run; None unless each of them has one token pending."""
        if not running or any([len(s.token_ids) - s.num_computed != 1 for s in running]):
            return None
        return cls(list(running), num_moves)

    @property
    def awaited(self) -> Decodes | None:
        """The step whose results are to come next."""
        return self.decodes if self._before is None else self._before

    @property
    def is_behind(self) -> bool:
        """Whether sequences do not know of all their tokens, or of those that are foreseen."""
        return self._is_behind or self._before is not None

    def _are_booked(self) -> bool:
        return not any(
            [s.first_token_at is None or s.num_computed < s.counted_to for s in self.sequences]
        )

    def holds(self) -> bool:
        """After results of an earlier step, which was foreseen when this began: whether each has the token that counted."""
        self._is_booked = self._are_booked()
        each = zip(self.sequences, self._start_S.tolist(), strict=True)
        return all([s.num_computed == at == len(s.token_ids) - 1 for s, at in each])

    def plan(self, cache: KVCache, room: Room) -> Decodes | None:
        """A token for each; None where blocks might not suffice for all."""
        growth = None
        if self._to_full <= 0:
            needy = np.flatnonzero(self._start_S >= self._room_S).tolist()
            if needy and (
                room.reserved or any([pool.num_free < len(needy) for pool in cache.pools])
            ):
                return None
            if needy and cache.pools:
                growth = self._grow(needy, cache)
            self._to_full = int((self._room_S - self._start_S).min())
        self.decodes = Decodes(self._rows, self._row_S, self._start_S, self._context, growth)
        return self.decodes

    def foresee(self, slices: Ordered[Slice]) -> bool:
        """Count on results of the step planned last, `slices`. False, with nothing done, where they may end somebody."""
        if self.decodes is not slices or not self._is_booked or self._left <= 1:
            return False
        assert self._before is None, "one step at most is under way"
        self._before, self.decodes = self.decodes, None
        self._go_on()
        return True

    def _go_on(self) -> None:
        self._left -= 1
        self._to_full -= 1
        self._context += len(self._rows)
        self._start_S = self._start_S + 1

    def _until_filled(self) -> int:
        return BLOCK_SIZE - int((self._start_S % BLOCK_SIZE).max())

    def _grow(self, needy: list[int], cache: KVCache) -> NewBlocks:
        """Another block of each group for those whose last block is full."""
        blocks, epochs = cache.extend_each([self.sequences[index] for index in needy])
        self._room_S[needy] += BLOCK_SIZE
        return NewBlocks(
            needy, self._row_S[needy], np.array(blocks, np.int64), np.array(epochs, np.int64)
        )

    def take(self, results: Ordered[SliceResult], cache: KVCache, now: float) -> Advanced | None:
        """Results of the step `awaited`: everyone goes on by a token. None where that is not so."""
        if not isinstance(results, Chosen) or not self._is_booked:
            return None
        token_ids = results.token_ids
        is_foreseen = self._before is not None
        if (not is_foreseen and self._left <= 1) or not self._stop_ids.isdisjoint(token_ids):
            return None
        if is_foreseen:
            self._before = None
        else:
            self.decodes = None
            self._go_on()
        self._taken.append(token_ids)
        self._taken_at, self._is_behind = now, True
        self._to_border -= 1
        if self._to_border == 0:
            self._to_border = self._until_filled()
            filled = np.flatnonzero(self._start_S % BLOCK_SIZE == 0)
            self._tell(filled.tolist())
            cache.publish_each([self.sequences[index] for index in filled.tolist()])
        if cache.has_windows:
            self.catch_up()
            for sequence in self.sequences:
                cache.slide(sequence)
        return Advanced(self._ids, token_ids, self._gave_way)

    def catch_up(self) -> None:
        """Tell every sequence what it does not know yet; before anybody else looks at any."""
        if self._is_behind:
            self._is_behind = False
            self._tell(range(len(self.sequences)))

    def foretell(self) -> None:
        """After `catch_up`: tell every sequence that it will have a token more, which is not known yet. The results that
        were awaited are the sequences' own then.
        """
        if self._before is not None:
            self._before = None
            for sequence in self.sequences:
                sequence.num_computed += 1
                sequence.token_ids.append(UNKNOWN)
            self._to_border = self._until_filled()

    def _tell(self, indices: Iterable[int]) -> None:
        taken, is_foreseen = list(self._taken), self._before is not None
        known_S = (self._start_S - is_foreseen).tolist()
        for index in indices:
            sequence = self.sequences[index]
            lag = known_S[index] - sequence.num_computed
            if lag:
                sequence.token_ids += [ids[index] for ids in taken[-lag:]]
                sequence.num_computed += lag
                sequence.last_token_at = self._taken_at
