"""Who has been served how much, and who waits: weighted fair queueing over predicted device time.

Each account has a clock: the seconds of the device that it was given, divided by its weight. Whose clock is lowest is
served next (Virtual Token Counter, Sheng et al., OSDI 2024, with time in place of tokens). A slice costs what the fitted
line says of its tokens and its context, and an equal part of what a step costs at all; until a line is fitted, tokens
count alone. An account whose queue was empty starts no lower than those who wait (or, when none does, than those who
run): having been idle is no credit.

A step of decodes touches no account: what rows cost is added up when somebody asks (`settle`), from how many there are,
their context and the steps since. Queues are sorted lists, the accounts that wait a heap whose keys may lag, which is
safe because clocks only rise: everything is O(log n), and O(rows) only where an account begins to wait.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from octavo.core.request import Request
from octavo.core.sequence import Sequence
from octavo.core.steptime import StepTime, attended
from octavo.scheduler.policies.base import Policy

NOMINAL = StepTime(token_s=1e-4)
"""Until a line is fitted. A few steps in a wrong unit are soon forgotten."""
RECENT_STEPS = 1024
"""Steps for which an account that went idle is expected back."""
LEAST_WEIGHT, MOST_WEIGHT = 0.01, 1000.0
"""Bounds of a weight, also checked where keys are made: a clock that stands still or runs away could not be undone."""
MOST_IDLE = 1024
"""Accounts without requests whose clocks are remembered; further ones forget what they owe."""


@dataclass(slots=True, eq=False)
class Account:
    """One party to the sharing. Owner: `Accounts`."""

    name: str
    weight: float = 1.0
    clock: float = 0.0
    """Seconds served per weight; up to date after `settle`."""
    waiting: list[Sequence] = field(default_factory=list)
    """In the policy's order."""
    rows: int = 0
    """Running sequences."""
    context: float = 0.0
    """Tokens that those hold, at the step `since`."""
    since: int = 0
    is_in_heap: bool = False
    is_aside: bool = False
    """Left out of the order for the rest of a step."""


class Accounts:
    """All accounts with requests, and the clocks of some without. Owner: the scheduler."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.live: dict[str, Account] = {}
        self.num_waiting = 0
        self.queued_tokens = 0
        self.line = NOMINAL
        self.steps = 0
        self._chunks_at = -1
        self.all = Account("")  # rows and context over all accounts; its clock is never asked
        self._idle: OrderedDict[str, Account] = OrderedDict()
        self._highest = 0.0
        self._heap: list[tuple[float, int, Account]] = []
        self._ticket = itertools.count()

    def of(self, request: Request) -> Account:
        """The account that pays, made where there is none."""
        name = self.policy.account(request)
        account = self.live.get(name)
        if account is None:
            account = self._idle.pop(name, None) or Account(name)
            account.since = self.steps
            self.live[name] = account
        return account

    def waiting(self) -> list[Sequence]:
        """Everyone who waits, account by account. O(n)."""
        return [sequence for account in self.live.values() for sequence in account.waiting]

    # -- queues --------------------------------------------------------------------------------------------------

    def enqueue(self, sequence: Sequence, uncached: int) -> None:
        """`sequence` waits; `uncached` of its tokens have to be computed as far as one can see."""
        request = sequence.request
        account = self.of(request)
        self.settle(account)  # what was served was served at the old weight
        account.weight = min(max(LEAST_WEIGHT, request.weight), MOST_WEIGHT)
        if not account.waiting:
            account.clock = max(account.clock, self._level())
        bisect.insort(account.waiting, sequence, key=self._order)
        self.num_waiting += 1
        sequence.queued_tokens = uncached
        self.queued_tokens += uncached
        self._push(account)

    def dequeue(self, sequence: Sequence) -> None:
        """`sequence` waits no more."""
        account = self.of(sequence.request)
        queue = account.waiting
        at = bisect.bisect_left(queue, self._order(sequence), key=self._order)
        while queue[at] is not sequence:  # equal keys lie side by side
            at += 1
        del queue[at]
        self.num_waiting -= 1
        self.queued_tokens -= sequence.queued_tokens
        self._retire(account)

    def first(self) -> Account | None:
        """Of the accounts with a queue, the one served least."""
        heap = self._heap
        while heap:
            key, _, account = heap[0]
            if account.is_aside or not account.waiting:
                heapq.heappop(heap)
                account.is_in_heap = False
            elif key < self.settle(account):
                heapq.heapreplace(heap, (account.clock, next(self._ticket), account))
            else:
                return account
        return None

    def set_aside(self, account: Account) -> None:
        """Leave the account out of the order, until `put_back`."""
        account.is_aside = True

    def put_back(self, account: Account) -> None:
        """Undo `set_aside`."""
        account.is_aside = False
        if account.waiting:
            self._push(account)

    def _push(self, account: Account) -> None:
        if not account.is_in_heap:
            account.is_in_heap = True
            heapq.heappush(self._heap, (account.clock, next(self._ticket), account))
            if len(self._heap) > 2 * len(self.live) + MOST_IDLE:
                self._tidy()

    def _tidy(self) -> None:
        """Drop accounts that wait no more: those behind one that waits long would never come up."""
        for _, _, account in self._heap:
            account.is_in_heap = bool(account.waiting)
        self._heap = [entry for entry in self._heap if entry[2].waiting]
        heapq.heapify(self._heap)

    def _order(self, sequence: Sequence) -> tuple[float, ...]:
        return self.policy.order(sequence.request)

    def _level(self) -> float:
        """Where an account begins that did not wait until now."""
        first = self.first()
        if first is not None:
            return first.clock
        clocks = [self.settle(account) for account in self.live.values() if account.rows]
        return max(clocks) if clocks else self._highest

    def _retire(self, account: Account) -> None:
        if account.waiting or account.rows:
            return
        self._highest = max(self._highest, account.clock)
        del self.live[account.name]
        self._idle[account.name] = account
        if len(self._idle) > MOST_IDLE:
            self._idle.popitem(last=False)

    def leaves_last_row(self, account: Account) -> bool:
        """Whether the last free row is not for `account`: it has more than its share, and another that is here, or was a
        moment ago, has less. To keep one row costs less than to take one away each time.
        """
        parties = list(self.live.values())
        last = next(reversed(self._idle.values()), None)
        if last is not None and last.since > self.steps - RECENT_STEPS:
            parties.append(last)
        share = self.all.rows / sum(each.weight for each in parties)
        return account.rows > share * account.weight and any(
            each.rows < share * each.weight for each in parties
        )

    # -- service -------------------------------------------------------------------------------------------------

    def tick(self, line: StepTime | None) -> None:
        """A step was planned in which every running sequence has a token; `line` once it is fitted."""
        self.steps += 1
        if line is not None:
            self.line = line

    def start(self, sequence: Sequence) -> None:
        """`sequence` has a row from now on."""
        for account in (self.of(sequence.request), self.all):
            self.settle(account)
            account.rows += 1
            account.context += sequence.num_tokens
        sequence.context_at_0 = sequence.num_tokens - self.steps

    def leave(self, sequence: Sequence) -> None:
        """`sequence` has no row any more."""
        account = self.of(sequence.request)
        # As much as it has added: a prompt in chunks has grown by less, and what is left would never go.
        context = sequence.context_at_0 + self.steps
        for each in (account, self.all):
            self.settle(each)
            each.rows -= 1
            each.context -= context
        self._retire(account)

    def charge(self, account: Account, start: int, count: int) -> None:
        """A chunk of `count` tokens from position `start` on, beyond the one token that every row is charged.

        What a step costs for having chunks at all is the first one's.
        """
        cost = self.line.token_s * (count - 1) + self.line.context_s * attended(start, count)
        if self._chunks_at != self.steps:
            self._chunks_at = self.steps
            cost = max(0.0, cost + self.line.chunk_s)  # clocks only rise
        account.clock = self.settle(account) + cost / account.weight

    def settled_context(self) -> float:
        """Tokens that all running sequences hold."""
        self.settle(self.all)
        return self.all.context

    def settle(self, account: Account) -> float:
        """Bring an account up to date; returns its clock."""
        steps = self.steps - account.since
        if steps:
            account.since = self.steps
            rows, line = account.rows, self.line
            if rows:
                each = line.token_s + line.base_s / max(1, self.all.rows)
                read = account.context + rows * (steps + 1) / 2
                account.clock += steps * (rows * each + line.context_s * read) / account.weight
                account.context += rows * steps
        return account.clock
