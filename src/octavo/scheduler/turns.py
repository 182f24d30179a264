"""Whose prompt is next within one step: running chunks and the heads of queues, least served account first."""

from __future__ import annotations

import enum

from octavo.core.sequence import Sequence, SequenceState
from octavo.scheduler.accounts import Account, Accounts
from octavo.scheduler.limits import MAX_IN_VAIN, MAX_PASSED


class Verdict(enum.Enum):
    """What became of the head of a queue."""

    STARTED = enum.auto()
    HELD_BACK = enum.auto()
    NO_ROW = enum.auto()
    LAST_ROW = enum.auto()
    NO_ROOM = enum.auto()
    NO_BUDGET = enum.auto()


class Turns:
    """One step's order. Within an account what runs goes before what waits."""

    def __init__(self, accounts: Accounts, stuck: Stuck, chunks: list[Sequence]) -> None:
        self._accounts = accounts
        self._stuck = stuck
        self._in_vain = 0
        self._chunks: dict[Account, list[Sequence]] = {}
        for sequence in reversed(chunks):  # so that the first is taken from the end
            self._chunks.setdefault(accounts.of(sequence.request), []).append(sequence)
        self._aside: list[Account] = []
        self._held_back: dict[Account, int] = {}

    def next(self, *, admitting: bool) -> Account | None:
        """The account whose turn it is; None when nobody has anything to run."""
        best = self._accounts.first() if admitting else None
        for account in self._chunks:
            clock = self._accounts.settle(account)
            if best is None or clock < best.clock:
                best = account
        return best

    def chunk(self, account: Account) -> Sequence | None:
        """Take the account's next running chunk, if it has one."""
        chunks = self._chunks.get(account)
        if not chunks:
            return None
        sequence = chunks.pop()
        if not chunks:
            del self._chunks[account]
        return sequence

    def head(self, account: Account) -> Sequence | None:
        """Who is next in the account's queue, those held back left out."""
        at = self._held_back.get(account, 0)
        return account.waiting[at] if at < len(account.waiting) else None

    def goes_on(self, verdict: Verdict, account: Account, due: Sequence | None) -> bool:
        """Whether heads are looked at after the account's, which had the verdict; `due`: it was the turn of that one."""
        if verdict is Verdict.STARTED:
            return True
        self._in_vain += 1
        if self._in_vain > MAX_IN_VAIN:
            return False
        if verdict is Verdict.NO_ROOM and self._stuck.may_be_passed(self.head(account)):
            self.pass_over(account)
            return True
        if verdict is Verdict.LAST_ROW and due is None:
            self.pass_over(account)
            return True
        return verdict is Verdict.HELD_BACK and due is None

    def hold_back(self, account: Account) -> None:
        """The account's head is to be left out in this step; the one after it may go."""
        self._held_back[account] = self._held_back.get(account, 0) + 1

    def pass_over(self, account: Account) -> None:
        """Nobody else of it can start in this step."""
        self._accounts.set_aside(account)
        self._aside.append(account)

    def end(self) -> None:
        """Everyone is in order again."""
        for account in self._aside:
            self._accounts.put_back(account)


class Stuck:
    """The head of a queue that found no room, and how often others passed it since. One at a time: when it has started,
    the next that finds no room is.
    """

    def __init__(self) -> None:
        self._head: Sequence | None = None

    def due(self) -> Sequence | None:
        """Who has been passed often enough: nobody else starts before it."""
        head = self._head
        if head is not None and head.state is not SequenceState.WAITING:
            head = self._head = None  # cancelled
        return head if head is not None and head.num_passed >= MAX_PASSED else None

    def may_be_passed(self, head: Sequence | None) -> bool:
        """`head` found no room; whether the heads of other accounts may start before it."""
        if self._head is None or self._head.state is not SequenceState.WAITING:
            self._head = head
        return self._head is None or self._head.num_passed < MAX_PASSED

    def note_start(self, sequence: Sequence) -> None:
        """`sequence` starts."""
        if self._head is sequence:
            self._head = None
        elif self._head is not None:
            self._head.num_passed += 1
