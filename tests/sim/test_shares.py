"""What fair shares and reserved growth come to, on a machine with a clock. Deterministic; figures with `-s`.

The line is that of a 0.6B model on two cores (`benchmarks/peers`): 25 ms to read the weights, 1.1 ms a token, 0.3 us per token
of context.
"""

from __future__ import annotations

import random

import pytest

from octavo.core.steptime import StepTime
from overcommit import overcommit
from sim.clocked import Job, Machine, Report

LINE = StepTime(base_s=0.025, token_s=0.0011, context_s=3e-7)
SECONDS = 120.0
RATE = 0.2
POOL = 16 * 520
"""Blocks: sixteen of A's requests."""


def arrivals(tenant: str, rate: float, prompt: tuple[int, int], seed: int) -> list[Job]:
    rng, at, jobs = random.Random(seed), 0.0, []
    while (at := at + rng.expovariate(rate)) < SECONDS:
        output = rng.randint(50, 150)
        jobs.append(Job(at, tenant, rng.randint(*prompt), output, max_tokens=512))
    return jobs


def loads(*, with_a: bool) -> list[Job]:
    """B asks now and then; A sends twenty times as many requests, of 8k tokens each."""
    b = arrivals("b", RATE, (100, 600), seed=5)
    return b + (arrivals("a", 20 * RATE, (8000, 8100), seed=6) if with_a else [])


@pytest.mark.parametrize("max_itl_s", [None, 0.1])
def test_twenty_times_the_load_of_long_prompts_hardly_slows_another_tenant(
    max_itl_s: float | None,
) -> None:
    reports: list[Report] = []
    for with_a in (False, True):
        machine = Machine(LINE, blocks=POOL, max_itl_s=max_itl_s, check_every=50)
        reports.append(machine.run(loads(with_a=with_a), until=SECONDS))
    alone, beside = reports
    before, after = alone.quantile("b", 0.99), beside.quantile("b", 0.99)
    share = beside.outputs["b"] / alone.outputs["b"]
    print(f"p99 ITL {before * 1e3:.0f} -> {after * 1e3:.0f} ms, throughput {share:.1%} of alone")
    assert after <= 1.3 * before
    assert share >= 0.9, (
        "B asks for less than half of the machine, so its fair share is all it asks for"
    )
    assert beside.served["a"] > beside.served["b"], "and A gets what B leaves"
    if max_itl_s is not None:
        assert after <= 1.05 * max_itl_s


def test_first_come_first_served_does_starve_it() -> None:
    machine = Machine(LINE, blocks=POOL, policy="fcfs")
    report = machine.run(loads(with_a=True), until=60.0)
    assert report.outputs.get("b", 0) < 0.3 * 60 * RATE * 100, "else the test above shows nothing"


@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_with_both_in_the_queue_all_the_time_device_time_is_shared_by_weight(weight: float) -> None:
    jobs = [Job(0, "b", 400, 100, max_tokens=512) for _ in range(900)]
    jobs += [Job(0, "a", 8000, 100, max_tokens=512) for _ in range(100)]
    machine = Machine(LINE, blocks=POOL, weights={"b": weight})
    machine.run(jobs, until=SECONDS)
    clocks = {name: account.clock for name, account in machine.scheduler.accounts.live.items()}
    seconds = {"a": clocks["a"], "b": clocks["b"] * weight}
    print(seconds)
    assert seconds["b"] / seconds["a"] == pytest.approx(weight, rel=0.1)
    assert sum(seconds.values()) == pytest.approx(SECONDS, rel=0.1), (
        "what is charged is the time that passed"
    )


def test_rows_that_are_all_taken_are_no_wall() -> None:
    """A's long outputs hold every row before B comes: B gets one soon, and few are taken away for it."""
    jobs = [Job(0, "a", 1000, 3000, max_tokens=4096) for _ in range(40)]
    jobs += [Job(50 + 3 * i, "b", 200, 100, max_tokens=512) for i in range(40)]
    machine = Machine(LINE, blocks=POOL, max_num_seqs=8)
    report = machine.run(jobs, until=170.0)
    counters = machine.scheduler.counters
    print(
        f"first token p99 {report.quantile('b', 0.99, 'firsts'):.2f} s, {counters.num_preemptions} preempted"
    )
    assert report.quantile("b", 0.99, "firsts") < 1.5
    assert report.outputs["b"] > 0.95 * 38 * 100
    assert counters.num_preemptions <= 6


def outputs(kind: str, count: int, *, told: bool) -> list[Job]:
    rng, jobs = random.Random(1), []
    for number in range(count):
        prompt = rng.randint(100, 600)
        length = {
            "lognormal": min(1024, max(1, int(rng.lognormvariate(5, 1)))),
            "bimodal": rng.choice([20, 900]),
            "fixed": 400,
        }[kind]
        jobs.append(Job(0.0, f"t{number % 3}", prompt, length, max_tokens=length if told else 1024))
    return jobs


@pytest.mark.parametrize("kind", ["lognormal", "bimodal", "fixed"])
def test_with_half_the_memory_hardly_anything_is_computed_twice(kind: str) -> None:
    """The ideal is told every output's length; `greedy` starts whatever fits now."""
    rows = 64
    jobs = outputs(kind, 200, told=False)
    demand = sum(-(-(job.prompt + job.output) // 16) for job in jobs) * rows // len(jobs)
    rates: dict[str, float] = {}
    for how in ("learned", "ideal", "greedy"):
        machine = Machine(LINE, blocks=demand // 2, max_num_seqs=rows, check_every=50)
        if how == "greedy":
            overcommit(machine.scheduler)
        if how == "ideal":
            for _ in range(5000):  # nobody ends before its limit, which is the truth
                machine.scheduler.room.growth._everyone.learn(1 << 20, cut_off=True)
        report = machine.run(outputs(kind, 200, told=how == "ideal"))
        counters = machine.scheduler.counters
        assert report.ended == 200
        assert report.most_preemptions <= 2
        rates[how] = sum(report.outputs.values()) / report.now
        print(
            f"{kind} {how}: {rates[how]:.0f} tokens/s, {counters.num_preemptions} preempted, at most "
            f"{report.most_preemptions} times, {counters.recomputed_tokens} tokens computed twice"
        )
    assert rates["learned"] >= 0.9 * rates["ideal"]
    assert rates["learned"] > rates["greedy"], "else there was nothing to spare"
