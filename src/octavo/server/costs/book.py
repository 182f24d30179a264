"""The ledger as it stands: every moment of the engine's life in an account, minute by minute, and what each request cost.

Fed by what engines say of their time (`engine/supervise.py: Payer`) and by calls as they begin and end. What it holds for
the database are sums to be added, so that they can be added again in one transaction. Time moves forward in windows without
a gap: idle between an engine's windows, `startup` before the first engine is ready, `failover` while there is none later
and for what a dead engine had not told. Knows no database and no HTTP.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from octavo.core.charge import Charges, RequestCharge
from octavo.meter.metrics import Metrics
from octavo.server.canary import ID_PREFIX
from octavo.server.costs.entry import End, Entry
from octavo.server.costs.tags import MINUTE_S, Account, Tags

LINGER_S = 30.0
"""A call that has ended and of which no engine says that it has (beams, what never reached one) is settled after this."""
_KINDS: tuple[Account, ...] = ("prefill", "decode", "preemption", "failover")
_CHARGED = {"computed": "prefill", "output": "decode"}

Mode = Literal["starting", "idle", "busy", "lost"]


class Line(NamedTuple):
    """What a sum of the ledger is of."""

    minute: int
    """Unix time of its beginning, in minutes."""
    tags: Tags
    item: str
    """An account, `tokens:KIND`, or `requests:REASON`."""


class Batch(NamedTuple):
    """What is to be added to a database."""

    sums: dict[Line, float]
    requests: list[Entry]
    until: float
    """Unix time up to which all time is booked."""


class Book:
    """Owner: the server's event loop. `charged` is told of each amount as it is booked (seconds, tokens)."""

    def __init__(
        self, model: str, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.model = model
        self.own = Tags(model=model)
        self.sums: defaultdict[Line, float] = defaultdict(float)
        self.settled: list[Entry] = []
        self.charged: Callable[[Tags, float, float], None] = lambda tags, seconds, tokens: None
        self._metrics = metrics
        self._clock = clock
        now = clock()
        self._unix = time.time() - now
        self.began = now + self._unix
        self._to = now  # booked up to
        self._mode: Mode = "starting"
        self._is_first = True
        self._entries: dict[str, Entry] = {}
        self._window: dict[str, Entry] = {}  # charged since `_to`
        self._window_own: defaultdict[Account, float] = defaultdict(float)
        self._owed_s = 0.0
        """What a counter, which only grows, has of idle time too much."""

    # -- what engines say ------------------------------------------------------------------------------------------

    def begin(self, at: float) -> None:
        """An engine is ready, and idle."""
        self._span("startup" if self._is_first else "failover", at)
        self._is_first, self._mode = False, "idle"

    def charge(self, charges: Charges) -> None:
        """It says where its time went."""
        for one in charges.requests:
            self._take(one)
        if self._mode == "idle" and (charges.is_whole or any(c.total_s for c in charges.requests)):
            self._span("idle", charges.since)
            self._mode = "busy"
        if charges.is_whole:
            self._window_own["overhead"] += charges.overhead_s
            self._count("overhead", charges.overhead_s)
            self._close_window(charges.until)
            self._mode = "idle" if charges.is_idle else "busy"
        for one in charges.requests:
            entry = self._entries.get(one.id) if one.is_final else None
            if entry is not None:
                entry.is_final = True
                self._settle(entry)

    def lose(self, at: float) -> None:
        """There is no engine any more."""
        if self._mode == "busy":
            told = sum(entry.window_s for entry in self._window.values())
            rest = max(0.0, at - self._to - told - sum(self._window_own.values()))
            self._window_own["failover"] += rest
            self._count("failover", rest)
            self._close_window(at)
        else:
            self._span("idle" if self._mode == "idle" else "failover", at)
        self._mode = "lost"
        for entry in list(self._entries.values()):
            if entry.end is not None:
                self._settle(entry, is_forced=True)
            elif not entry.output:
                self._move(entry, "failover")  # all of its prompt is computed again

    # -- what calls say --------------------------------------------------------------------------------------------

    def open(self, request_id: str, tags: Tags, num_prompt: int) -> Entry:
        """A request is about to be handed to the engine; `num_prompt` as it is booked: choices share one."""
        now = self._clock() + self._unix
        entry = self._entries[request_id] = Entry(request_id, tags, num_prompt, now)
        self._tokens(entry, "prompt", num_prompt)
        return entry

    def add_output(self, entry: Entry, count: int) -> None:
        """Its caller gets so many tokens more."""
        entry.output += count
        self._tokens(entry, "output", count)

    def close(self, entry: Entry, end: End) -> None:
        """Its call has ended. Once per entry."""
        entry.end = end
        entry.closed_at = self._clock()
        entry.ended = entry.closed_at + self._unix
        self._tokens(entry, "cached", end.num_cached)
        self._tokens(entry, "reasoning", end.num_reasoning)
        self._add(entry.tags, f"requests:{end.reason}", 1.0)
        self._settle(entry)

    # -- for the database ------------------------------------------------------------------------------------------

    def tick(self) -> float:
        """Book what needs nobody's word; Unix time up to which all is booked."""
        now = self._clock()
        if self._mode == "idle" and not self._entries:
            self._span("idle", now)
        elif self._mode in ("starting", "lost"):
            self._span("startup" if self._is_first else "failover", now)
        for entry in [one for one in self._entries.values() if one.end is not None]:
            if now - entry.closed_at > LINGER_S:
                self._settle(entry, is_forced=True)
        return self._to + self._unix

    def take(self) -> Batch:
        """All that is not taken yet."""
        until = self.tick()
        batch = Batch(dict(self.sums), self.settled, until)
        self.sums.clear()
        self.settled = []
        return batch

    def pending(self) -> Iterator[tuple[Tags, str, float]]:
        """(tags, item, amount) of what is not taken yet."""
        for line, amount in self.sums.items():
            yield line.tags, line.item, amount
        for entry in self._window.values():
            for account, seconds in zip(_KINDS, entry.window, strict=True):
                yield entry.tags, account, seconds

    # -- within ----------------------------------------------------------------------------------------------------

    def _take(self, one: RequestCharge) -> None:
        # A beam search asks for its steps under names behind the call's.
        entry = self._entries.get(one.id) or self._entries.get(one.id.rpartition("-")[0])
        if entry is None:
            if one.total_s:
                account: Account = "canary" if one.id.startswith(ID_PREFIX) else "decode"
                self._window_own[account] += one.total_s
                self._count(account, one.total_s)
            return
        entry.take(one)
        self._window[entry.id] = entry
        self._tokens(entry, "computed", one.prefill_tokens)
        amounts = (one.prefill_s, one.decode_s, one.preemption_s, one.failover_s)
        for account, seconds in zip(_KINDS, amounts, strict=True):
            self._count(account, seconds)
        self.charged(entry.tags, one.prefill_s + one.decode_s, 0.0)

    def _span(self, account: Account, until: float) -> None:
        """All time up to `until` goes to one account. Before what is booked already: it was booked too far."""
        seconds = until - self._to
        for minute, share in _minutes(self._to + self._unix, until + self._unix):
            self.sums[Line(minute, self.own, account)] += share * seconds
        self._to = until
        counted = seconds - self._owed_s
        self._owed_s = max(0.0, -counted)
        self._count(account, counted)

    def _close_window(self, until: float) -> None:
        """Time up to `until` goes to whoever was charged since, in equal parts of each minute."""
        shares = _minutes(self._to + self._unix, until + self._unix)
        for minute, share in shares:
            for account, seconds in self._window_own.items():
                self.sums[Line(minute, self.own, account)] += share * seconds
            for entry in self._window.values():
                kept = entry.minutes.setdefault(minute, [0.0, 0.0])
                for index, seconds in enumerate(entry.window):
                    if not seconds:
                        continue
                    account = entry.wasted_as if index < 2 and entry.wasted_as else _KINDS[index]
                    self.sums[Line(minute, entry.tags, account)] += share * seconds
                    if index < 2:
                        kept[index] += share * seconds
        for entry in self._window.values():
            entry.window = [0.0, 0.0, 0.0, 0.0]
        self._window.clear()
        self._window_own.clear()
        self._to = until

    def _settle(self, entry: Entry, *, is_forced: bool = False) -> None:
        """Once its call and its engine are done with it: what was wasted goes to its account, in the minutes it was spent."""
        if entry.end is None or not (entry.is_final or is_forced):
            return
        del self._entries[entry.id]
        if entry.end.wasted_as is not None:
            self._metrics.count("octavo:wasted_device_seconds", entry.paid_s, entry.end.wasted_as)
            self._move(entry, entry.end.wasted_as)
            entry.wasted_as = entry.end.wasted_as
        self.settled.append(entry)

    def _move(self, entry: Entry, account: Account) -> None:
        for minute, kept in entry.minutes.items():
            for index, seconds in enumerate(kept):
                self.sums[Line(minute, entry.tags, _KINDS[index])] -= seconds
                self.sums[Line(minute, entry.tags, account)] += seconds
        entry.minutes.clear()
        self._tokens(entry, "computed", -entry.computed)  # beside what `prefill` has
        if account != "aborted":
            self.charged(entry.tags, -entry.paid_s, 0.0)
        if account == "failover":
            entry.give_back()
        else:
            self._tokens(entry, "lost", entry.output)

    def _tokens(self, entry: Entry, kind: str, count: int) -> None:
        if count:
            self._add(entry.tags, f"tokens:{kind}", float(count))
            counted = _CHARGED.get(kind)
            if counted is not None and count > 0:
                self._metrics.count("octavo:charged_tokens", count, counted)
            if kind in ("prompt", "output"):
                self.charged(entry.tags, 0.0, float(count))

    def _add(self, tags: Tags, item: str, amount: float) -> None:
        minute = int((self._clock() + self._unix) // MINUTE_S)
        self.sums[Line(minute, tags, item)] += amount

    def _count(self, account: Account, seconds: float) -> None:
        if seconds > 0:
            kind = account if account in ("prefill", "decode") else ""
            self._metrics.count(
                "octavo:device_seconds", seconds, "request" if kind else account, kind
            )


def _minutes(since: float, until: float) -> list[tuple[int, float]]:
    """Minutes that a span of Unix time touches, and the share of it that lies in each; they sum to 1."""
    first, last = math.floor(since / MINUTE_S), math.floor(until / MINUTE_S)
    if last <= first:
        return [(first, 1.0)]
    length, found, at = until - since, [], since
    for minute in range(first, last):
        end = (minute + 1) * MINUTE_S
        found.append((minute, (end - at) / length))
        at = end
    return [*found, (last, (until - at) / length)]
