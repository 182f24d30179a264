"""What every scheduling policy must be: pure, total, and such that nobody waits for ever."""

from __future__ import annotations

import itertools

import pytest
from msgspec.structs import replace

from octavo.core.params import SamplingParams
from octavo.core.request import Request
from octavo.scheduler.policies.base import AGEING_S, MOST_CLASSES, Policy
from octavo.scheduler.policies.registry import POLICIES

BASE = Request(
    id="r", token_ids=(1,), params=SamplingParams(), max_tokens=1, seed=0, arrived=1000.0
)


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    return POLICIES.load(request.param)()


def test_it_orders_and_accounts_by_the_request_alone(policy: Policy) -> None:
    tenants, priorities, indices = ("", "a", "b"), (0, 5, -5, 1 << 31, -(1 << 31)), (0, 1)
    for tenant, priority, index in itertools.product(tenants, priorities, indices):
        asked = replace(BASE, tenant=tenant, priority=priority, index=index)
        again = replace(asked, id="other", token_ids=(2, 3))
        assert policy.order(asked) == policy.order(again)
        assert policy.account(asked) == policy.account(again)
        assert all(abs(value) < float("inf") for value in policy.order(asked))


def test_of_equals_the_first_to_come_is_first_and_choices_are_in_order(policy: Policy) -> None:
    later = replace(BASE, arrived=1000.001)
    assert policy.order(BASE) < policy.order(later)
    assert policy.order(BASE) < policy.order(replace(BASE, index=1))


def test_nobody_is_overtaken_for_ever(policy: Policy) -> None:
    patient = replace(BASE, priority=1 << 31)
    pushy = replace(BASE, priority=-(1 << 31), arrived=1000.0 + 2 * MOST_CLASSES * AGEING_S + 1)
    assert policy.order(patient) < policy.order(pushy)


def test_priority_counts_where_it_says_so_and_ten_seconds_make_up_for_a_class(
    policy: Policy,
) -> None:
    urgent = replace(BASE, priority=-1, arrived=1000.0 + AGEING_S / 2)
    late = replace(BASE, priority=-1, arrived=1000.0 + AGEING_S * 2)
    assert (policy.order(urgent) < policy.order(BASE)) == policy.uses_priority
    assert policy.order(BASE) < policy.order(late)
