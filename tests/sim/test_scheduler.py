"""Thousands of random workloads through the real scheduler and cache, each step against the invariants, and some
against a scheduler that goes through its sequences one by one."""

from __future__ import annotations

import pytest

from sim.simulate import Outcome, run_workload

NUM_WORKLOADS = 2_000
CHUNK = 100


@pytest.mark.parametrize("first", range(0, NUM_WORKLOADS, CHUNK))
def test_random_workloads(first: int) -> None:
    total = Outcome(0, 0, 0, 0, 0, 0, 0)
    for seed in range(first, first + CHUNK):
        outcome = run_workload(seed)
        for name in (
            "steps",
            "finished",
            "aborted",
            "late",
            "preemptions",
            "alike",
            "cached_tokens",
        ):
            setattr(total, name, getattr(total, name) + getattr(outcome, name))
    print(f"seeds {first}..{first + CHUNK - 1}: {total}")
    # The workloads exercise what they are meant to: a simulator that never preempts proves nothing.
    assert total.preemptions > 0 and total.cached_tokens > 0 and total.aborted > 0
    assert total.late > 0 and total.alike > total.steps / 10
