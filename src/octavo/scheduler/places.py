"""Where sequences stand: in a queue, in a row, or nowhere any more; and the moves from one to another. Decides nothing."""

from __future__ import annotations

import bisect

from octavo.cache.groups import KVCache, Match
from octavo.core.plan import SequenceStart
from octavo.core.sequence import Sequence, SequenceState
from octavo.scheduler.accounts import Accounts
from octavo.scheduler.room import Room
from octavo.scheduler.stats import Counters


class Places:
    """All sequences. Each move is told to cache, room and accounts. Owner: the scheduler."""

    def __init__(
        self, num_rows: int, cache: KVCache, accounts: Accounts, room: Room, counters: Counters
    ) -> None:
        self.cache = cache
        self.accounts = accounts
        self.room = room
        self.counters = counters
        self.by_id: dict[str, Sequence] = {}
        self.running: list[Sequence] = []  # in the policy's order
        self.by_row: dict[int, Sequence] = {}
        self.ended_rows: list[int] = []
        """Free again since the last plan."""
        self.left: list[Sequence] | None = None
        """Who has ended, for whoever keeps a record; nobody does unless it is a list."""
        self.num_moves = 0
        """How often anyone began or stopped to run."""
        self._free_rows: list[int] = list(range(num_rows - 1, -1, -1))

    @property
    def num_free_rows(self) -> int:
        """Rows that nobody has."""
        return len(self._free_rows)

    def take_ended_rows(self) -> tuple[int, ...]:
        """What a plan says of `ended_rows`, once."""
        ended, self.ended_rows = tuple(self.ended_rows), []
        return ended

    def enter(self, sequence: Sequence) -> None:
        """A new sequence waits."""
        self.by_id[sequence.id] = sequence
        self._enqueue(sequence)

    def start(self, sequence: Sequence, match: Match, count: int, now: float) -> SequenceStart:
        """From a queue into a row, with blocks for its first `count` tokens after the match."""
        self.accounts.dequeue(sequence)
        self.cache.admit(sequence, match)
        self.cache.extend(sequence, match.num_tokens + count)
        sequence.state = SequenceState.RUNNING
        self.num_moves += 1
        sequence.row = self._free_rows.pop()
        self.by_row[sequence.row] = sequence
        if sequence.admitted_at is None:
            sequence.admitted_at = now
            sequence.num_cached = min(match.num_tokens, sequence.num_prompt)
            if self.cache.looks_up(sequence):
                self.counters.prefix_queries += sequence.num_tokens
                self.counters.prefix_hits += match.num_tokens
        sequence.num_matched = match.num_tokens
        self.room.start(sequence)
        self.accounts.start(sequence)
        bisect.insort(self.running, sequence, key=self._order)
        return SequenceStart(
            row=sequence.row,
            request=sequence.request,
            token_ids=tuple(sequence.token_ids),
            blocks=tuple(tuple(table) for table in sequence.blocks),
            epochs=self.cache.epochs(sequence.blocks),
        )

    def preempt(self, sequence: Sequence) -> None:
        """From its row back to its place in the queue."""
        sequence.num_computed_before = max(sequence.num_computed_before, sequence.num_computed)
        sequence.counted_to = max(sequence.counted_to, sequence.num_computed_before)
        self._leave(sequence)
        sequence.state = SequenceState.WAITING
        sequence.num_preemptions += 1
        self.counters.num_preemptions += 1
        self._enqueue(sequence)

    def drop(self, sequence: Sequence) -> None:
        """It has ended, wherever it stood."""
        if sequence.state is SequenceState.RUNNING:
            self._leave(sequence)
        else:
            self.accounts.dequeue(sequence)
        sequence.state = SequenceState.FINISHED
        del self.by_id[sequence.id]
        if self.left is not None:
            self.left.append(sequence)

    def _enqueue(self, sequence: Sequence) -> None:
        self.accounts.enqueue(sequence, sequence.num_tokens - self.cache.reach(sequence))

    def _leave(self, sequence: Sequence) -> None:
        """Stop running: blocks and row come back."""
        self.num_moves += 1
        self.running.remove(sequence)
        self.cache.release(sequence)
        self.room.leave(sequence)
        self.accounts.leave(sequence)
        del self.by_row[sequence.row]
        self._free_rows.append(sequence.row)
        self.ended_rows.append(sequence.row)
        sequence.row = -1

    def _order(self, sequence: Sequence) -> tuple[float, ...]:
        return self.accounts.policy.order(sequence.request)
