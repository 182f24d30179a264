"""What has been accepted and has no first token yet: by account and priority, in prompt tokens, and in bytes held.

Owner: `Admission`. An account is what the scheduling policy shares the machine between. Knows counts; does not know
time to first token, engines or HTTP.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from octavo.core.request import Request

_TWIN_TOKENS = 16
"""Of a further choice of the same prompt: what its twin leaves to compute, at most a block."""


class Queued(NamedTuple):
    """An amount of work that waits."""

    tokens: float
    num_prompts: int


class Lane(NamedTuple):
    """Where a call waits."""

    account: str
    priority: int
    """0 where the policy does not look at it."""
    weight: float = 1.0
    """The account's share beside others'."""


class _Row:
    """The waiting work of one lane."""

    __slots__ = ("num_prompts", "tokens")

    def __init__(self) -> None:
        self.tokens = 0
        self.num_prompts = 0


class Accounts:
    """All accepted requests that have not begun."""

    def __init__(self) -> None:
        self.tokens = 0
        self.num_prompts = 0
        self.num_calls = 0
        """Calls under way, begun or not."""
        self.held_bytes = 0
        """Of bodies that calls under way were sent with."""
        self.handed_tokens = 0
        """Of `tokens`, those handed to the engine."""
        self.lanes: dict[Lane, _Row] = {}
        self._late: deque[tuple[float, int]] = deque()
        """When requests were handed over, and their tokens: those that the engine may not have counted yet."""

    def add(self, lane: Lane, tokens: int, by: int = 1) -> None:
        """Book a request (by 1), or strike it off (by -1)."""
        self.tokens += by * tokens
        self.num_prompts += by
        row = self.lanes.setdefault(lane, _Row())
        row.tokens += by * tokens
        row.num_prompts += by
        if not row.num_prompts:
            del self.lanes[lane]

    def hand_over(self, tokens: int, now: float) -> None:
        """A booked request goes to the engine."""
        self.handed_tokens += tokens
        self._late.append((now, tokens))

    def unseen(self, seen_until: float) -> Queued:
        """What was handed over after a moment up to which the engine has looked; that moment may not go back."""
        late = self._late
        while late and late[0][0] <= seen_until:
            late.popleft()
        return Queued(sum(tokens for _, tokens in late), len(late))

    def before(self, lane: Lane, own: float) -> Queued:
        """What goes before a request of `own` tokens in `lane`. O(lanes).

        Of its own account, what is as urgent. Of each other account, no more than that one's share until this account
        has been served all of it: the bound of fair queueing.
        """
        mine = own
        theirs: dict[str, int] = {}
        for other, row in self.lanes.items():
            if other.account != lane.account:
                theirs[other.account] = theirs.get(other.account, 0) + row.tokens
            elif other.priority <= lane.priority:
                mine += row.tokens
        tokens, num_prompts = 0.0, 0.0
        for other, row in self.lanes.items():
            part = 1.0
            if other.account != lane.account:
                share = mine * other.weight / lane.weight
                part = min(1.0, share / max(1, theirs[other.account]))
            elif other.priority > lane.priority:
                continue
            tokens += part * row.tokens
            num_prompts += part * row.num_prompts
        return Queued(tokens, round(num_prompts))


class Place:
    """One call's entries in the accounts."""

    def __init__(self, accounts: Accounts, lane: Lane, requests: Iterable[Request]) -> None:
        self._accounts = accounts
        self._lane = lane
        self._waiting = {request.id: tokens_of(request) for request in requests}
        self._handed: set[str] = set()
        self._is_open = True
        accounts.num_calls += 1
        for tokens in self._waiting.values():
            accounts.add(self._lane, tokens)

    @property
    def has_begun(self) -> bool:
        """Whether every request has its first token."""
        return not self._waiting

    def hand_over(self, request_id: str, now: float) -> None:
        """The request goes to the engine; once."""
        if request_id in self._waiting and request_id not in self._handed:
            self._handed.add(request_id)
            self._accounts.hand_over(self._waiting[request_id], now)

    def begin(self, request_id: str) -> None:
        """The request has its first token, or its end; again changes nothing."""
        tokens = self._waiting.pop(request_id, None)
        if tokens is None:
            return
        self._accounts.add(self._lane, tokens, by=-1)
        if request_id in self._handed:
            self._accounts.handed_tokens -= tokens

    def close(self) -> bool:
        """The call is over: nothing of it is left in the accounts. False when that was so before."""
        was_open, self._is_open = self._is_open, False
        if was_open:
            for request_id in tuple(self._waiting):
                self.begin(request_id)
            self._accounts.num_calls -= 1
        return was_open


def tokens_of(request: Request) -> int:
    """Prompt tokens that a request brings; those of further choices of one prompt are in the prefix cache by then."""
    return request.num_prompt if request.index == 0 else min(_TWIN_TOKENS, request.num_prompt)
