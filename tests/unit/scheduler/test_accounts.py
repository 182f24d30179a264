"""Clocks of accounts: what is charged, who is next, what idleness is worth."""

from __future__ import annotations

import pytest

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.core.sequence import Sequence
from octavo.core.steptime import StepTime, attended
from octavo.scheduler.accounts import MOST_IDLE, Accounts
from octavo.scheduler.policies.registry import POLICIES

LINE = StepTime(base_s=0.02, token_s=0.001, context_s=1e-6)


def make() -> Accounts:
    accounts = Accounts(POLICIES.load("fair")())
    accounts.line = LINE
    return accounts


def sequence(tenant: str, prompt: int = 100, *, arrived: float = 0.0, **fields: object) -> Sequence:
    request = Request(
        id=f"{tenant}{arrived}",
        token_ids=tuple(range(prompt)),
        params=SamplingParams(),
        max_tokens=10,
        seed=0,
        arrived=arrived,
        tenant=tenant,
        **fields,  # type: ignore[arg-type]
    )
    return Sequence(request=request, token_ids=list(request.token_ids))


def admit(accounts: Accounts, *sequences: Sequence) -> None:
    for each in sequences:
        accounts.enqueue(each, each.num_tokens)
        accounts.dequeue(each)
        accounts.start(each)


def test_decodes_are_charged_when_somebody_asks_as_if_step_by_step() -> None:
    accounts = make()
    admit(accounts, sequence("a", 100), sequence("a", 300, arrived=1.0), sequence("b", 50))
    for _ in range(10):
        accounts.tick(LINE)
    base = LINE.base_s / 3
    a = sum(2 * (LINE.token_s + base) + LINE.context_s * (400 + 2 * s) for s in range(1, 11))
    b = sum(LINE.token_s + base + LINE.context_s * (50 + s) for s in range(1, 11))
    assert accounts.settle(accounts.live["a"]) == pytest.approx(a, rel=0.01)
    assert accounts.settle(accounts.live["b"]) == pytest.approx(b, rel=0.01)
    assert accounts.settled_context() == 450 + 30


def test_a_chunk_costs_its_tokens_and_its_context_by_weight() -> None:
    accounts = make()
    admit(accounts, sequence("a", weight=4.0))
    accounts.charge(accounts.live["a"], 1000, 64)
    cost = 63 * LINE.token_s + LINE.context_s * attended(1000, 64)
    assert accounts.live["a"].clock == pytest.approx(cost / 4)


def test_who_was_served_least_is_first_and_idleness_is_no_credit() -> None:
    accounts = make()
    accounts.enqueue(sequence("a"), 100)
    accounts.charge(accounts.live["a"], 0, 5000)
    accounts.enqueue(sequence("b"), 100)
    assert accounts.live["b"].clock == accounts.live["a"].clock > 0
    accounts.charge(accounts.live["a"], 0, 10)
    first = accounts.first()
    assert first is not None and first.name == "b"
    accounts.charge(first, 0, 500)
    first = accounts.first()
    assert first is not None and first.name == "a"


def test_with_nobody_waiting_a_newcomer_starts_level_with_who_runs() -> None:
    accounts = make()
    admit(accounts, sequence("a"))
    for _ in range(1000):
        accounts.tick(LINE)
    accounts.enqueue(sequence("b"), 100)
    assert accounts.live["b"].clock == accounts.live["a"].clock > 10


def test_debts_outlast_a_pause_and_are_forgiven_by_a_common_one() -> None:
    accounts = make()
    one, other = sequence("a"), sequence("b")
    admit(accounts, one, other)
    accounts.charge(accounts.live["a"], 0, 5000)
    accounts.leave(one)
    accounts.enqueue(sequence("a", arrived=1.0), 100)
    assert accounts.live["a"].clock > accounts.live["b"].clock
    accounts.dequeue(accounts.live["a"].waiting[0])
    accounts.leave(other)
    accounts.enqueue(sequence("b", arrived=2.0), 100)
    accounts.enqueue(sequence("a", arrived=2.0), 100)
    assert accounts.live["a"].clock == accounts.live["b"].clock


def test_tenants_without_requests_are_remembered_in_bounded_number() -> None:
    accounts = make()
    for number in range(MOST_IDLE + 100):
        each = sequence(f"t{number}")
        accounts.enqueue(each, 1)
        accounts.dequeue(each)
    assert not accounts.live and len(accounts._idle) == MOST_IDLE
    assert (accounts.num_waiting, accounts.queued_tokens) == (0, 0)


def test_accounts_set_aside_are_passed_over_until_they_are_put_back() -> None:
    accounts = make()
    for tenant in "ab":
        accounts.enqueue(sequence(tenant), 100)
    first = accounts.first()
    assert first is not None
    accounts.set_aside(first)
    second = accounts.first()
    assert second is not None and second is not first
    accounts.set_aside(second)
    assert accounts.first() is None
    accounts.put_back(first)
    assert accounts.first() is first


def test_context_does_not_pile_up_where_rows_run_more_steps_than_they_have_tokens() -> None:
    accounts = make()
    stays = sequence("a", 10)
    admit(accounts, stays)
    for _ in range(100):
        passing = sequence("a", 100)
        admit(accounts, passing)
        for _ in range(5):  # chunks of a prompt
            accounts.tick(LINE)
        accounts.leave(passing)
    assert accounts.settled_context() == 10 + 500
    accounts.leave(stays)
    assert accounts.settled_context() == 0


def test_a_million_names_leave_nothing_behind_one_that_waits() -> None:
    accounts = make()
    accounts.enqueue(sequence("waits"), 100)
    for number in range(10 * MOST_IDLE):
        passing = sequence(f"t{number}")
        accounts.enqueue(passing, 100)
        accounts.dequeue(passing)
    assert len(accounts._heap) <= MOST_IDLE + 3
    assert list(accounts.live) == ["waits"]
    first = accounts.first()
    assert first is not None and first.name == "waits"


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf"), 1e-300])
def test_no_weight_stops_a_clock_or_lets_it_run_away(weight: float) -> None:
    accounts = make()
    admit(accounts, sequence("a", weight=weight))
    accounts.charge(accounts.live["a"], 0, 100)
    assert 0 < accounts.live["a"].clock < 1000
    accounts.enqueue(sequence("b"), 100)
    assert accounts.leaves_last_row(accounts.live["b"]) is False


def test_a_new_weight_says_nothing_of_what_was_served() -> None:
    accounts = make()
    admit(accounts, sequence("a"), sequence("b"))
    accounts.enqueue(sequence("a", arrived=1.0), 100)
    for _ in range(10):
        accounts.tick(LINE)
    accounts.enqueue(sequence("a", arrived=2.0, weight=100.0), 100)
    a, b = accounts.live["a"], accounts.live["b"]
    assert accounts.settle(a) == accounts.settle(b) > 0
