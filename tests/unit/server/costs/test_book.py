"""The book: every moment in one account and one minute, whatever engines and callers do."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from octavo.core.charge import Charges, RequestCharge
from octavo.meter.metrics import Metrics
from octavo.server.costs.book import Book, Line
from octavo.server.costs.entry import End, Entry
from octavo.server.costs.tags import ACCOUNTS, MINUTE_S, Tags

ANN = Tags("ann", "key_1", "search", "m")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """A book, an engine that lies about nothing, and callers; all random."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.metrics = Metrics("m")
        self.book = Book("m", self.metrics, self.clock)
        self.sums: defaultdict[Line, float] = defaultdict(float)
        self.settled: list[Entry] = []
        self.open: dict[str, Entry] = {}
        self.begun: set[str] = set()
        self.number = 0

    def sleep(self, most: float) -> None:
        self.clock.now += self.rng.random() * most

    def take(self) -> None:
        batch = self.book.take()
        for line, amount in batch.sums.items():
            self.sums[line] += amount
        self.settled += batch.requests

    def work(self) -> None:
        """An engine's windows until it has nothing more to do, with callers that come and go."""
        rng, book = self.rng, self.book
        since = self.clock.now
        while self.open or rng.random() < 0.5:
            self.sleep(0.05)
            for _ in range(rng.randint(0, 2)):
                self.number += 1
                name = f"r{self.number}"
                self.open[name] = book.open(name, rng.choice([ANN, Tags("bob")]), 10)
            told = 0.0
            for is_whole in [False] * rng.randint(0, 2) + [True]:
                self.sleep(rng.choice([0.3, 0.3, 70.0]))
                length = self.clock.now - since - told
                told += self.tell(since, length, is_whole)
            since = self.clock.now
            if rng.random() < 0.3:
                self.take()

    def tell(self, since: float, length: float, is_whole: bool) -> float:
        rng, now = self.rng, self.clock.now
        ended = [name for name in self.open if rng.random() < 0.3]
        names = list(self.open) if is_whole else ended
        parts = [rng.random() for _ in names] + [0.1]
        scale = length / sum(parts)
        for name in ended:
            if rng.random() < 0.3 and name in self.open:
                self.close(name)
        charges = tuple(
            self._split(n, scale * p, n in ended) for n, p in zip(names, parts, strict=False)
        )
        amount = sum(one.total_s for one in charges)
        rest = length - amount if is_whole else 0.0
        is_idle = is_whole and not set(self.open) - set(ended)
        self.book.charge(
            Charges(
                since=since,
                until=now,
                requests=charges,
                overhead_s=rest,
                is_whole=is_whole,
                is_idle=is_idle,
            )
        )
        for name in ended:
            if name in self.open:
                self.close(name)
        return amount

    def _split(self, name: str, seconds: float, is_final: bool) -> RequestCharge:
        self.begun.add(name)
        parts = [self.rng.random() for _ in range(4)]
        each = [seconds * part / sum(parts) for part in parts]
        return RequestCharge(name, *each, 3, is_final)

    def close(self, name: str) -> None:
        rng = self.rng
        entry = self.open.pop(name)
        if rng.random() < 0.5:
            self.book.add_output(entry, 4)
        end = rng.choice([End("stop"), End("abort", "aborted"), End("error", "failed")])
        self.book.close(entry, end)


@pytest.mark.parametrize("seed", range(40))
def test_every_minute_has_sixty_seconds(seed: int) -> None:
    world = World(seed)
    rng, book = world.rng, world.book
    began = book.began
    for _ in range(rng.randint(1, 4)):
        world.sleep(30.0)
        if rng.random() < 0.5:
            world.take()
        book.begin(world.clock.now)
        for _ in range(rng.randint(0, 3)):
            world.sleep(100.0)
            if rng.random() < 0.5:
                world.take()  # books idle time before the engine says so
            world.work()
        world.sleep(20.0)
        book.lose(world.clock.now)
        world.open.clear()
    world.take()
    ended = book.tick()
    world.take()
    minutes: defaultdict[int, float] = defaultdict(float)
    for line, amount in world.sums.items():
        if line.item in ACCOUNTS:
            minutes[line.minute] += amount
            assert amount > -1e-6, line
    assert sum(minutes.values()) == pytest.approx(ended - began, abs=1e-5)
    for minute, seconds in sorted(minutes.items())[1:-1]:
        assert seconds == pytest.approx(MINUTE_S, abs=1e-5), minute
    counted = sum(
        world.metrics.value("octavo:device_seconds_total", (("account", a), ("kind", k)))
        for a, k in [
            *((account, "") for account in ACCOUNTS),
            ("request", "prefill"),
            ("request", "decode"),
        ]
    )
    assert counted == pytest.approx(ended - began, abs=1e-5), "the counters say the same"
    _check_requests(world)


def _check_requests(world: World) -> None:
    """What requests came to one by one is what their tenants have in sum."""
    for account in ("aborted", "failed"):
        spent = sum(e.paid_s for e in world.settled if e.end and e.end.wasted_as == account)
        booked = sum(amount for line, amount in world.sums.items() if line.item == account)
        assert booked == pytest.approx(spent, abs=1e-6), account
    kept = [entry for entry in world.settled if entry.end and entry.end.wasted_as is None]
    live = sum(
        sum(entry.minutes.get(minute, [0, 0])[0] for minute in entry.minutes)
        for entry in world.book._entries.values()
    )
    booked = sum(amount for line, amount in world.sums.items() if line.item == "prefill")
    assert booked == pytest.approx(sum(entry.prefill_s for entry in kept) + live, abs=1e-6)


def test_an_idle_engine_that_is_killed_was_idle() -> None:
    clock = Clock()
    book = Book("m", Metrics("m"), clock)
    clock.now += 5
    book.begin(clock.now)
    clock.now += 3600
    book.lose(clock.now)
    clock.now += 2
    book.begin(clock.now)
    sums: defaultdict[str, float] = defaultdict(float)
    for line, amount in book.take().sums.items():
        sums[line.item] += amount
    assert sums == pytest.approx({"startup": 5, "idle": 3600, "failover": 2})


def test_a_prompt_that_an_engine_died_over_costs_its_tenant_nothing() -> None:
    clock = Clock()
    book = Book("m", Metrics("m"), clock)
    book.begin(clock.now)
    entry = book.open("a", ANN, 100)
    clock.now += 0.5
    charge = RequestCharge("a", prefill_s=0.5, prefill_tokens=60)
    book.charge(Charges(since=1000.0, until=1000.5, requests=(charge,)))
    clock.now += 0.3
    book.lose(clock.now)
    clock.now += 1
    book.begin(clock.now)
    clock.now += 1
    charge = RequestCharge("a", prefill_s=0.8, decode_s=0.2, prefill_tokens=100, is_final=True)
    book.charge(Charges(since=1001.8, until=1002.8, requests=(charge,), is_idle=True))
    book.add_output(entry, 7)
    book.close(entry, End("length"))
    sums: defaultdict[str, float] = defaultdict(float)
    for line, amount in book.take().sums.items():
        sums[line.item] += amount
    assert sums["failover"] == pytest.approx(1.8) and sums["prefill"] == pytest.approx(0.8)
    assert sums["tokens:computed"] == 100 and sums["tokens:prompt"] == 100
    assert entry.again_s == 0.5 and entry.prefill_s == 0.8


def test_beams_are_their_calls_and_the_canary_has_an_account() -> None:
    clock = Clock()
    book = Book("m", Metrics("m"), clock)
    book.begin(clock.now)
    entry = book.open("cmpl-aa-0", ANN, 10)
    clock.now += 1
    told = (
        RequestCharge("cmpl-aa-0-3.1", 0.25, 0.25, 0, 0, 10, True),
        RequestCharge("canary-bb", 0.1, 0.4, is_final=True),
    )
    book.charge(Charges(since=1000.0, until=1001.0, requests=told, is_idle=True))
    book.close(entry, End("stop"))
    assert entry.paid_s == 0.5
    assert not book.take().requests, "engines say nothing of a beam search as a whole"
    clock.now += 31
    (settled,) = book.take().requests
    assert settled is entry
    assert (
        book._metrics.value("octavo:device_seconds_total", (("account", "canary"), ("kind", "")))
        == 0.5
    )
