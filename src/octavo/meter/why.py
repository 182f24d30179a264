"""Why a request took as long as it did: parts that follow each other without gaps, so that they sum to the whole.

Up to the engine, and after its last token, the parts are what the server measured. In between they are read off the step
log: each step and each gap between steps, cut to the time of the request, is one part, or is divided between the request
and those it ran with as the fitted line prices their slices. Knows stamps and steps; does not know where they are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from octavo.core.steptime import StepTime, attended
from octavo.core.waits import BEHIND
from octavo.meter.steplog import SliceRecord, StepRecord

PARTS: dict[str, str] = {
    "auth": "looking at its key",
    "network": "receiving its body",
    "tokenize": "parsing, rendering and tokenizing its prompt, and letting it in",
    "grammar": "compiling what its output is bound to",
    "queue": "waiting to run, by reason",
    "step_under_way": "waiting for the step that was running when it came",
    "own_prefill": "its prompt through the model",
    "others_prefill": "prompts of others in its steps",
    "decode": "its output through the model",
    "batch": "outputs of others in its steps, and steps that left it out",
    "preemption": "waiting and computing again after it gave way, or its engine ended",
    "loop": "the engine between steps",
    "restart": "no engine",
    "engine": "the engine, of which no steps are on record",
    "detokenize": "its last tokens to text",
    "client_stall": "its caller not reading",
    "delivery": "on the way from the engine to its caller",
}
"""Name of each part, in the order in which they are shown, and what it is."""

Span = tuple[float, float]


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One share of the time of a request."""

    name: str
    seconds: float
    reason: str = ""
    """Of "queue": why, as `core/waits.py` says."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What another request cost this one."""

    id: str
    seconds: float


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """The time of one request. The parts sum to `total_s`."""

    total_s: float
    parts: tuple[Part, ...]
    costliest: tuple[Cost, ...] = ()
    """Others, by what they cost: their share of steps that it ran in or waited for."""
    num_steps: int = 0
    """Steps on record between its acceptance and its last token; 0: the engine is one part."""


class Stamps(NamedTuple):
    """When things happened to a call, on one clock of the host. Those that were not taken are as late as the next."""

    received: float
    authorized: float
    body: float
    """Its body was complete."""
    prepared: float
    """Its prompt was ready for the engine."""
    sent: float
    """The engine was asked; later than `prepared` by what a grammar took."""
    last_token: float
    """The engine had its last token, or this is what is known so far."""
    ended: float
    """The last byte went out, or now."""
    num_prompt: int = 0
    stalls: tuple[Span, ...] = ()
    """When writing waited for the caller."""
    texts: tuple[Span, ...] = ()
    """When tokens were turned into text."""
    admitted: float | None = None
    """Its first step began, and its first token was there: what to go by without steps."""
    first_token: float | None = None


class Seen(NamedTuple):
    """What one engine process has on record while a request was there, on the clock of its stamps."""

    added: float
    """The scheduler took it."""
    records: Sequence[StepRecord]
    line: StepTime


def explain(request_id: str, stamps: Stamps, seen: Sequence[Seen] = (), most: int = 3) -> Why:
    """The parts of a request's time; with steps on record, and the `most` that others cost it."""
    parts = _Parts()
    edges = (
        ("auth", stamps.received, stamps.authorized),
        ("network", stamps.authorized, stamps.body),
        ("tokenize", stamps.body, stamps.prepared),
        ("grammar", stamps.prepared, stamps.sent),
    )
    for name, start, end in edges:
        parts.add(name, end - start)
    last = max(stamps.sent, min(stamps.last_token, stamps.ended))
    walk = _Walk(request_id, stamps, parts)
    num_steps = sum(len(one.records) for one in seen)
    if num_steps:
        walk.follow(seen, stamps.sent, last)
    else:
        _coarse(parts, stamps, last)
    _deliver(parts, stamps, last)
    costs = sorted(walk.costs.items(), key=lambda item: -item[1])[:most]
    return Why(
        total_s=stamps.ended - stamps.received,
        parts=parts.sorted(),
        costliest=tuple(Cost(id=name, seconds=seconds) for name, seconds in costs if seconds > 0),
        num_steps=num_steps,
    )


class _Parts:
    """Sums by name and reason."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], float] = {}

    def add(self, name: str, seconds: float, reason: str = "") -> None:
        if seconds:
            key = (name, reason)
            self._sums[key] = self._sums.get(key, 0.0) + seconds

    def sorted(self) -> tuple[Part, ...]:
        order = list(PARTS)
        keys = sorted(self._sums, key=lambda key: (order.index(key[0]), key[1]))
        return tuple(
            Part(name=name, seconds=self._sums[name, reason], reason=reason)
            for name, reason in keys
        )


def _coarse(parts: _Parts, stamps: Stamps, last: float) -> None:
    """The engine's time without steps: what the request itself was told."""
    admitted, first = stamps.admitted, stamps.first_token
    if admitted is None or first is None or not stamps.sent <= admitted <= first <= last:
        parts.add("engine", last - stamps.sent)
        return
    parts.add("queue", admitted - stamps.sent)
    parts.add("own_prefill", first - admitted)
    parts.add("decode", last - first)


def _deliver(parts: _Parts, stamps: Stamps, last: float) -> None:
    """After the last token: what the server did and waited for, instant by instant, and what is left."""
    left = stamps.ended - last
    taken: list[Span] = []
    for name, spans in (("client_stall", stamps.stalls), ("detokenize", stamps.texts)):
        for start, end in spans:
            seconds = _unclaimed(max(start, last), min(end, stamps.ended), taken)
            parts.add(name, seconds)
            left -= seconds
    parts.add("delivery", left)


def _unclaimed(start: float, end: float, taken: list[Span]) -> float:
    """Seconds of a span that lie in none of those `taken`, which it joins."""
    if end <= start:
        return 0.0
    pieces = [(start, end)]
    for low, high in taken:
        pieces = [
            piece
            for a, b in pieces
            for piece in ((a, min(b, low)), (max(a, high), b))
            if piece[1] > piece[0]
        ]
    taken.append((start, end))
    return sum(b - a for a, b in pieces)


class _Walk:
    """From one step to the next with one request."""

    def __init__(self, request_id: str, stamps: Stamps, parts: _Parts) -> None:
        self.costs: dict[str, float] = {}
        self._id = request_id
        self._parts = parts
        self._num_prompt = stamps.num_prompt
        self._computed = 0
        """Tokens of it that have been through the model, at the furthest."""
        self._is_running = False
        self._has_begun = False

    def follow(self, seen: Sequence[Seen], start: float, last: float) -> None:
        """Divide the time from `start` to `last`."""
        at = start
        for number, one in enumerate(seen):
            self._is_running = False
            for index, record in enumerate(one.records):
                begun = record.at
                ended = begun + record.elapsed_s
                if ended <= at and not self._is_in(record):
                    continue
                if at >= last:
                    return
                upto = min(max(begun, at), last)
                if number and not index:
                    self._parts.add("restart", upto - at)
                else:
                    self._between(upto - at, record, one, start)
                at = upto
                upto = min(max(ended, at), last)
                self._step(upto - at, record, one, is_late=begun < max(start, one.added))
                at = upto
        name = "loop" if self._is_running or self._has_begun else "queue"
        self._parts.add(name, last - at, "" if name == "loop" else BEHIND)

    def _is_in(self, record: StepRecord) -> bool:
        return self._id in record.started or self._id in record.ended

    def _between(self, seconds: float, record: StepRecord, one: Seen, start: float) -> None:
        """The gap before a step."""
        waits = not self._is_running and self._id not in record.started
        if waits and record.at > max(start, one.added):
            self._wait(seconds, record)
        else:
            self._parts.add("loop", seconds)

    def _step(self, seconds: float, record: StepRecord, one: Seen, *, is_late: bool) -> None:
        """`seconds` of a step, which was planned before the request was there if `is_late`."""
        if self._id in record.ended:
            self._is_running = False
        if self._id in record.started:
            self._is_running = self._has_begun = True
        mine = next((each for each in record.slices if each.id == self._id), None)
        prices = [_price(each, one.line) for each in record.slices]
        base = one.line.base_s
        total = base + sum(prices)
        if mine is None:
            if self._is_running:
                self._parts.add("batch", seconds)
            elif is_late and not self._has_begun:
                self._parts.add("step_under_way", seconds)
            else:
                self._wait(seconds, record)
            if (
                sum(prices) <= 0
            ):  # where steps were all alike, the fit may leave nothing to what is in them
                prices = [1.0] * len(prices)
            self._charge(seconds, record, prices, sum(prices))
            return
        if total <= 0:
            prices, total = [1.0] * len(prices), float(len(prices))
        each_s = seconds / total
        others = [(r, p) for r, p in zip(record.slices, prices, strict=True) if r is not mine]
        prefill = sum(price for r, price in others if r.num_tokens > 1)
        decode = sum(price for r, price in others if r.num_tokens <= 1)
        self._parts.add("others_prefill", prefill * each_s)
        self._parts.add("batch", decode * each_s)
        self._parts.add(self._own(mine), seconds - (prefill + decode) * each_s)
        self._computed = max(self._computed, mine.start + mine.num_tokens)
        self._charge(seconds, record, prices, total)

    def _own(self, mine: SliceRecord) -> str:
        if mine.start < self._computed:
            return "preemption"
        return "own_prefill" if mine.start < self._num_prompt else "decode"

    def _wait(self, seconds: float, record: StepRecord) -> None:
        if self._has_begun:
            self._parts.add("preemption", seconds)
            return
        self._parts.add("queue", seconds, reason_of(record, self._id))

    def _charge(
        self, seconds: float, record: StepRecord, prices: Sequence[float], total: float
    ) -> None:
        """To each of the others its share."""
        if total <= 0:
            return
        for each, price in zip(record.slices, prices, strict=True):
            if each.id != self._id:
                self.costs[each.id] = self.costs.get(each.id, 0.0) + seconds * price / total


def reason_of(record: StepRecord, request_id: str) -> str:
    """Why a request that waits did not run in a step."""
    for name, reason in record.heads:
        if name == request_id:
            return reason
    return record.waiting[-1][0] if record.waiting else BEHIND


def _price(piece: SliceRecord, line: StepTime) -> float:
    """What a slice is predicted to cost, without the base; before anything is known, its tokens."""
    if not (line.base_s or line.token_s or line.context_s):
        return float(piece.num_tokens)
    read = attended(piece.start, piece.num_tokens)
    return line.token_s * piece.num_tokens + line.context_s * read


def total_of(parts: Iterable[Part]) -> float:
    """What parts sum to."""
    return sum(part.seconds for part in parts)
