"""From traffic and an SLO to flags: calibrate, search in simulation, run the best few for real, compare.

Where live runs gave something else than simulated, their steps are learned, and all but the calibration is done once more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from octavo.tools.tune import live
from octavo.tools.tune.calibrate import calibrate
from octavo.tools.tune.candidates import Candidate, space
from octavo.tools.tune.findings import Ran, Round, report_of
from octavo.tools.tune.pool import Pool, pool_of, shared_out
from octavo.tools.tune.report import Report
from octavo.tools.tune.search import LEAST, MOST, Found, Search
from octavo.tools.tune.simulate import Machine
from octavo.tools.tune.slo import Score
from octavo.tools.tune.task import Task
from octavo.tools.tune.traffic import rate_of, scaled
from octavo.tools.tune.verify import SEEDS, residual, told
from octavo.tools.tune.worlds import Measured, Planned, World, check_fits

CURVE = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""Of the highest rate that keeps the SLO, drawn."""
MOST_ROWS = 12
ROUNDS = 2
ENOUGH = 200
"""Requests that are judged together, from several simulations where the traffic has fewer."""

Say = Callable[[str], None]


def tune(task: Task, say: Say) -> Report:
    """Everything.

    Raises:
        OctavoError: the model cannot run, or the traffic cannot be taken by it.
    """
    check_fits(task.jobs, task.config)
    world: World
    if task.target is None:
        say("starting the server")
        world = Measured(calibrate(task.values, task.jobs, task.calibration_s, say))
    else:
        world = Planned(task.config, task.target)
    return tune_in(world, task, say)


def tune_in(world: World, task: Task, say: Say) -> Report:
    """The same, of a machine that is known."""
    machine = world.machine(world.default)
    if machine is not None:
        check_fits(task.jobs, task.config, machine.limits.max_model_len)
    rounds = [_round(world, task, say)]
    while rounds[-1].is_confirmed is False and len(rounds) < ROUNDS:
        seen = [ran.live.seen for ran in rounds[-1].lives.values() if ran.live.seen is not None]
        more = world.learned(seen)
        if more is None or not seen:
            break
        say("live runs gave something else; learning their steps")
        world = more
        rounds.append(_round(world, task, say))
    last = rounds[-1]
    for candidate in (world.default, last.found.best):
        _draw(last.search, candidate)
    return report_of(rounds, task, _pool(last, task, say))


def _round(world: World, task: Task, say: Say) -> Round:
    search = Search(lambda candidate, factor: _evaluate(world, task, candidate, factor), say)
    fixed = {name for name in Candidate._fields if name in task.values}
    say("simulating")
    found = search.run(world.default, space(world.default, task.slo, fixed, world.longest_step))
    ranked = _ranked(search, found, world.default)
    lives: dict[Candidate, Ran] = {}
    if task.target is None and task.live_s > 0:
        for candidate in _for_live(ranked, found.best, world.default, task.live_candidates):
            say(f"live run of {task.live_s:g} s: {candidate.text(world.default)}")
            ran = _live(world, task, candidate)
            if ran is not None:
                lives[candidate] = ran
    return Round(world, search, found, tuple(ranked), lives, task.tolerance)


def _evaluate(world: World, task: Task, candidate: Candidate, factor: float) -> Score:
    return _judged(world, task, world.machine(candidate), factor)


def _judged(world: World, task: Task, machine: Machine | None, factor: float) -> Score:
    jobs = task.jobs if factor == 1.0 else scaled(task.jobs, factor)
    if machine is None:
        nothing = {"rate": rate_of(jobs), "goodput": 0.0, "good_share": 0.0, "tokens_per_s": 0.0}
        late = {"ttft_p99": math.inf, "itl_p99": math.inf, "good_tokens_per_s": 0.0}
        return Score(**nothing, **late, failed=len(jobs), missed=("does not fit into memory",))
    # Of a long traffic one simulation meets as many draws.
    seeds = min(world.num_seeds, max(1, ENOUGH // len(jobs)))
    return told(jobs, machine, world.times, task.slo, seeds).score


def _live(world: World, task: Task, candidate: Candidate) -> Ran | None:
    """Run, and beside it what had been said."""
    machine = world.machine(candidate)
    if machine is None:
        return None
    values = task.values | candidate.changes(world.default)
    part = live.part_of(task.jobs, task.live_s)
    ran = live.measure(values, part, task.slo, task.seed)
    what = (ran.score, ran.records, ran.seen)
    seeds = SEEDS if world.num_seeds > 1 else 1
    found = residual(part, machine, world.times, task.slo, what, others=ran.others, num_seeds=seeds)
    return Ran(ran, *found)


def _pool(last: Round, task: Task, say: Say) -> Pool | None:
    """Of the flags that were found, where there is a rate at which they keep the SLO."""
    machine = last.world.machine(last.found.best)
    capacity = last.search.capacity(last.found.best)
    if machine is None or not 0 < capacity < MOST:
        return None
    say("simulating smaller and larger KV caches")
    known: dict[tuple[float, float], bool] = {}

    def meets(factor: float, share: float) -> bool:
        if (factor, share) not in known:
            score = _judged(last.world, task, shared_out(machine, share), factor)
            known[factor, share] = score.meets
        return known[factor, share]

    return pool_of(machine, capacity, meets)


def _ranked(search: Search, found: Found, default: Candidate) -> list[Candidate]:
    """The best, the defaults, and the best of the others, as they do at the traffic's own rate."""
    known = sorted(found.capacity, key=lambda c: -found.capacity[c])
    others = [candidate for candidate in found.tried if candidate not in found.capacity]

    def seen(candidate: Candidate) -> float:
        shares = (s.good_share for (c, _), s in found.scores.items() if c == candidate)
        return max(shares, default=0.0)

    others.sort(key=lambda c: -seen(c))
    chosen = list(dict.fromkeys((found.best, default, *known, *others)))[:MOST_ROWS]
    for candidate in chosen:
        search.at(candidate, 1.0)
    return chosen


def _for_live(
    ranked: list[Candidate], best: Candidate, default: Candidate, most: int
) -> list[Candidate]:
    return list(dict.fromkeys((best, default, *ranked)))[: max(1, most)]


def _draw(search: Search, candidate: Candidate) -> None:
    """Fill its curve in."""
    capacity = search.capacity(candidate) or 1.0
    for share in CURVE:
        factor = capacity * share
        if LEAST <= factor <= MOST:
            search.at(candidate, factor)
