"""The ledger under a simulated engine: whatever the scheduler does, windows and charges leave no moment out and count none
twice, and what is computed again is nobody's prefill.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from msgspec.structs import replace

from octavo.cache.groups import KVCache
from octavo.core.charge import Charges
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.result import Event, Failed, Finished, TokenOut
from octavo.meter.ledger import Ledger
from octavo.scheduler.limits import Limits
from octavo.scheduler.policies.registry import POLICIES
from octavo.scheduler.scheduler import Scheduler
from overcommit import overcommit
from sim.simulate import MAX_BLOCKS, FakeRunner, make_groups, make_request


class Machine:
    """A scheduler, a fake runner and a ledger on a clock of the test's."""

    def __init__(self, rng: random.Random, every_s: float, now: float) -> None:
        limits = Limits(
            max_num_seqs=rng.choice([2, 8]),
            max_num_batched_tokens=rng.choice([24, 64, 512]),
            max_model_len=MAX_BLOCKS * BLOCK_SIZE,
        )
        groups = make_groups(rng, limits.max_num_batched_tokens)
        self.scheduler = Scheduler(limits, KVCache(groups), POLICIES.load("fair")())
        overcommit(self.scheduler)
        self.runner = FakeRunner(groups)
        self.ledger = Ledger(every_s)
        self.rng, self.now, self.told = rng, now, []
        self.computed: Counter[str] = Counter()
        """Tokens that went through the model, by request."""
        self.names: dict[int, str] = {}

    def pass_time(self, seconds: float) -> float:
        self.now += seconds
        return self.now

    def turn(self, events: list[Event]) -> list[Event]:
        """As the loop does it."""
        scheduler, rng = self.scheduler, self.rng
        plan = scheduler.schedule(self.pass_time(rng.random() * 1e-3))
        if plan is not None:
            result = self.runner.run(plan)
            self.names |= {start.row: start.request.id for start in plan.starts}
            for piece in plan.slices:
                self.computed[self.names[piece.row]] += piece.count
            self.pass_time(result.elapsed_s)
            fit = scheduler.step_time
            self.ledger.add(plan, result, fit.line if fit.is_fitted else None, self.now)
            events = [*events, *scheduler.apply(plan, result, self.now)]
        self.pass_time(rng.random() * 1e-3)
        if events or plan is not None:
            charges = self.ledger.due(events, self.now, is_idle=not scheduler.has_work)
            if charges is not None:
                self.told.append(charges)
        return events


def check_windows(told: list[Charges]) -> tuple[float, float]:
    """Each whole window sums to its length and they never overlap; what they cover, and what lies between them."""
    ahead, covered, idle, last = 0.0, 0.0, 0.0, None
    for charges in told:
        amount = sum(charge.total_s for charge in charges.requests)
        if not charges.is_whole:
            assert charges.overhead_s == 0 and all(one.is_final for one in charges.requests)
            ahead += amount
            continue
        whole_s = ahead + amount + charges.overhead_s
        assert whole_s == pytest.approx(charges.until - charges.since, rel=1e-9, abs=1e-9)
        if last is not None:
            assert charges.since >= last.until
            assert last.is_idle or charges.since == last.until
            idle += charges.since - last.until
        covered, ahead, last = covered + whole_s, 0.0, charges
    assert ahead == 0.0
    return covered, idle


@pytest.mark.parametrize("seed", range(25))
def test_no_moment_is_lost_or_counted_twice(seed: int) -> None:
    rng = random.Random(seed)
    machine = Machine(rng, rng.choice([0.0, 0.05, 0.5]), 100.0)
    pending = [make_request(rng, i, MAX_BLOCKS * BLOCK_SIZE) for i in range(20)]
    pending = [replace(one, resumed=(), restarts=0, deadline=None) for one in pending]
    asked = {one.id: one for one in pending}
    ends: dict[str, Event] = {}
    scheduler = machine.scheduler
    while pending or scheduler.has_work:
        if not scheduler.has_work:
            machine.ledger.wake(machine.pass_time(rng.random()))
        events: list[Event] = []
        while pending and (rng.random() < 0.2 or not scheduler.has_work):
            events += scheduler.add(pending.pop())
        if rng.random() < 0.02 and scheduler.by_id:
            events += scheduler.cancel(rng.choice(sorted(scheduler.by_id)))
        ends |= {e.id: e for e in machine.turn(events) if isinstance(e, Finished | Failed)}
    covered, idle = check_windows(machine.told)
    whole = [
        told for told in machine.told if told.is_whole
    ]  # else it was refused at once, out of rest
    first, last = whole[0].since, whole[-1].until
    assert covered + idle == pytest.approx(last - first, rel=1e-9)
    _check_requests(machine, asked, ends)


def _check_requests(machine: Machine, asked: dict, ends: dict) -> None:  # type: ignore[type-arg]
    charges = [one for told in machine.told for one in told.requests]
    assert Counter(one.id for one in charges if one.is_final) == Counter(asked.keys())
    tokens, again = Counter[str](), Counter[str]()
    for one in charges:
        tokens[one.id] += one.prefill_tokens
        again[one.id] += one.preemption_s > 0
        assert min(one.prefill_s, one.decode_s, one.preemption_s, one.failover_s) >= 0
    for name, end in ends.items():
        if isinstance(end, Finished) and end.reason != "abort":
            assert tokens[name] == end.num_prompt - end.num_cached, name
            fresh = end.num_prompt + end.num_output - 1 - end.num_cached
            assert (machine.computed[name] > fresh) == (again[name] > 0), name


@pytest.mark.parametrize("seed", range(10))
def test_what_a_second_engine_computes_again_is_failover(seed: int) -> None:
    rng = random.Random(1000 + seed)
    first = Machine(rng, 0.0, 0.0)
    asked = [make_request(rng, i, MAX_BLOCKS * BLOCK_SIZE) for i in range(6)]
    asked = [replace(one, resumed=(), restarts=0, deadline=None) for one in asked]
    had: dict[str, list[int]] = {one.id: [] for one in asked}
    ended: set[str] = set()
    first.ledger.wake(0.0)
    events: list[Event] = []
    for one in asked:
        events += first.scheduler.add(one)
    for _ in range(12):
        if not first.scheduler.has_work:
            break
        for event in first.turn(events):
            if isinstance(event, TokenOut):
                had[event.id] += event.token_ids
            else:
                ended.add(event.id)
        events = []
    second = Machine(rng, 0.5, 50.0)
    second.scheduler.cache.enable_prefix_caching = False
    second.ledger.wake(50.0)
    for one in asked:
        if one.id not in ended:
            given = replace(one, resumed=tuple(had[one.id]), restarts=1)
            events += second.scheduler.add(given)
    while second.scheduler.has_work:
        second.turn(events)
        events = []
    for told in (first.told, second.told):
        check_windows(told)
    charged = [one for charges in second.told for one in charges.requests]
    for one in asked:
        if one.id in ended:
            continue
        of_it = [charge for charge in charged if charge.id == one.id]
        has_output = bool(had[one.id])
        assert (sum(charge.failover_s for charge in of_it) > 0) == has_output
        assert (sum(charge.prefill_s for charge in of_it) > 0) != has_output
