"""From traffic and an SLO to flags: calibrate, search in simulation, run the best few for real, compare."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from octavo.core.config import EngineConfig
from octavo.core.kvspec import BLOCK_SIZE
from octavo.meter.frames import DIGEST_BYTES
from octavo.tools.bench.environment import environment
from octavo.tools.plan.target import Target
from octavo.tools.tables import bytes_text
from octavo.tools.tune import live
from octavo.tools.tune.calibrate import calibrate
from octavo.tools.tune.candidates import Candidate, space
from octavo.tools.tune.live import Live
from octavo.tools.tune.report import Point, Report, Row, cost_per_million, traffic_of
from octavo.tools.tune.search import LEAST, MOST, Found, Search, front
from octavo.tools.tune.simulate import Simulated, simulate
from octavo.tools.tune.slo import IMPLIED_TTFT_MS, Score, Slo, score
from octavo.tools.tune.traffic import Job, rate_of, scaled
from octavo.tools.tune.worlds import Measured, Planned, World, check_fits

CURVE = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)
"""Of the highest rate that keeps the SLO, drawn."""
MOST_ROWS = 12
CLOSE = 0.05
"""Share by which live goodput may be below another's without another choice."""
_SHORT_S = 10.0


class Task(NamedTuple):
    """What is asked for."""

    config: EngineConfig
    values: dict[str, object]
    """What the operator gave, as keys of `--config`."""
    jobs: Sequence[Job]
    slo: Slo
    target: Target | None
    """A device to tell times of; None: this machine, measured."""
    price: float | None
    calibration_s: float
    live_s: float
    """0: no live runs."""
    live_candidates: int
    tolerance: float
    seed: int


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
    search = Search(lambda candidate, factor: _evaluate(world, task, candidate, factor), say)
    fixed = {name for name in Candidate._fields if name in task.values}
    say("simulating")
    found = search.run(world.default, space(world.default, task.slo, fixed, world.longest_step))
    ranked = _ranked(search, found, world.default)
    lives: dict[Candidate, Live] = {}
    if task.target is None and task.live_s > 0:
        for candidate in _for_live(ranked, found.best, world.default, task.live_candidates):
            say(f"live run of {task.live_s:g} s: {candidate.text(world.default)}")
            lives[candidate] = _live(task, candidate, world.default)
    for candidate in (world.default, found.best):
        _draw(search, candidate)
    return _report(world, task, search, found, ranked, lives)


def _evaluate(world: World, task: Task, candidate: Candidate, factor: float) -> Score:
    jobs = task.jobs if factor == 1.0 else scaled(task.jobs, factor)
    done = _simulated(world, task, candidate, jobs)
    rate = rate_of(jobs)
    if done is None:
        nothing = {"rate": rate, "goodput": 0.0, "good_share": 0.0, "tokens_per_s": 0.0}
        late = {"ttft_p99": math.inf, "itl_p99": math.inf, "good_tokens_per_s": 0.0}
        return Score(**nothing, **late, failed=len(jobs), missed=("does not fit into memory",))
    return score(done.records, task.slo, rate)


def _simulated(
    world: World, task: Task, candidate: Candidate, jobs: Sequence[Job]
) -> Simulated | None:
    machine = world.machine(candidate)
    return None if machine is None else simulate(jobs, machine, world.times, task.seed)


def _live(task: Task, candidate: Candidate, default: Candidate) -> Live:
    values = task.values | candidate.changes(default)
    return live.measure(values, live.part_of(task.jobs, task.live_s), task.slo, task.seed)


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


def _report(
    world: World,
    task: Task,
    search: Search,
    found: Found,
    ranked: list[Candidate],
    lives: dict[Candidate, Live],
) -> Report:
    rows = tuple(_row(world, task, search, found, c, lives.get(c)) for c in ranked)
    by_candidate = dict(zip(ranked, rows, strict=True))
    offs = [abs(row.off) for row in rows if row.off is not None]
    is_confirmed = None if not lives else all(off <= task.tolerance for off in offs)
    trusted = found.best if is_confirmed is not False else world.default
    best = _chosen(trusted, lives)
    chosen_by = "simulation" if best == found.best and is_confirmed is not False else "live runs"
    changes = best.changes(world.default)
    verdict, is_met = _verdict(world, task, search, best, by_candidate[best])
    notes = _notes(world, task, found, best)
    if is_confirmed is False:
        far = max(offs)
        verdict = (
            f"UNCONFIRMED: simulated and live goodput differ by up to {far:.0%} (allowed: "
            f"{task.tolerance:.0%}), so the flags are those that did clearly best in live runs, else the "
            f"defaults, and simulated rates are no promise. {verdict}"
        )
    notes += [note for each in lives.values() for note in each.notes]
    return Report(
        model=task.config.model,
        device=world.name,
        slo=task.slo,
        traffic=_traffic(task.jobs),
        calibration=world.facts(),
        recommended={**task.values, **changes},
        flags="" if not changes else best.text(world.default),
        chosen_by=chosen_by,
        verdict=verdict,
        is_met=is_met,
        is_confirmed=is_confirmed,
        rows=rows,
        points=_points(task, search, world.default),
        num_simulations=len(search.scores),
        notes=tuple(notes),
        device_price=task.price,
        environment=environment(),
    )


def _row(
    world: World,
    task: Task,
    search: Search,
    found: Found,
    candidate: Candidate,
    ran: Live | None,
) -> Row:
    simulated = search.at(candidate, 1.0)
    capacity = found.capacity.get(candidate)
    rate = rate_of(task.jobs)
    alike = None
    if ran is not None:
        part = live.part_of(task.jobs, task.live_s)
        done = _simulated(world, task, candidate, part)
        alike = None if done is None else score(done.records, task.slo, rate_of(part))
    return Row(
        flags=candidate.text(world.default),
        values=candidate.changes(world.default),
        simulated=simulated,
        cost_per_million=cost_per_million(simulated, task.price),
        most_rate=None if capacity is None else capacity * rate,
        live=None if ran is None else ran.score,
        simulated_alike=alike,
        off=None if ran is None or alike is None else _off(alike, ran.score),
    )


def _off(simulated: Score, measured: Score) -> float:
    """By what share the simulation says more; beside nothing, anything is all of it."""
    if measured.goodput <= 0:
        return 0.0 if simulated.goodput <= 0 else 1.0
    return simulated.goodput / measured.goodput - 1


def _chosen(trusted: Candidate, lives: dict[Candidate, Live]) -> Candidate:
    """The simulation's best, or the defaults where live runs did not confirm it, unless another did clearly better when
    it ran.
    """
    if trusted not in lives:
        return trusted
    most = max(lives, key=lambda c: lives[c].score.goodput)
    is_close = lives[trusted].score.goodput >= (1 - CLOSE) * lives[most].score.goodput
    return trusted if is_close else most


def _verdict(
    world: World, task: Task, search: Search, best: Candidate, row: Row
) -> tuple[str, bool]:
    """What was reached, and whether it is what was asked for."""
    rate = rate_of(task.jobs)
    capacity = search.capacity(best)
    base = search.capacity(world.default)
    beside = "" if best == world.default else f" (defaults: {base * rate:.3g})"
    if capacity < 1 and row.live is not None and not row.live.missed:
        return (
            f"The SLO held in the live run at {rate:.3g} requests/s; simulated, it holds up to "
            f"{capacity * rate:.3g}{beside}.",
            True,
        )
    if capacity <= 0:
        least = search.at(best, LEAST)
        why = "; ".join(least.missed)
        return (
            f"The SLO cannot be met, at whatever rate: at {least.rate:.2g} requests/s {why}. No flag that was tried "
            "changes that: ask for less, or take a faster device or a smaller model.",
            False,
        )
    ends = f"{'beyond ' if capacity >= MOST else ''}{capacity * rate:.3g} requests/s"
    missed = row.live.missed if row.live is not None else row.simulated.missed
    if capacity < 1:
        return (
            f"The SLO cannot be met at {rate:.3g} requests/s: simulated, it holds up to {ends}{beside}. Send less to "
            f"this server, or share the traffic among {math.ceil(1 / capacity)}.",
            False,
        )
    if missed:
        return (
            f"Simulated, the SLO holds up to {ends}{beside}; in the live run at {rate:.3g} it did not: "
            f"{'; '.join(missed)}.",
            False,
        )
    return f"The SLO holds at {rate:.3g} requests/s, and simulated up to {ends}{beside}.", True


def _notes(world: World, task: Task, found: Found, best: Candidate) -> list[str]:
    notes = []
    if task.slo.is_implied:
        notes.append(
            f"nothing was asked of first tokens; {IMPLIED_TTFT_MS / 1e3:g} s at p99 were assumed."
        )
    if found.best == world.default:
        notes.append(
            "no flag that was tried keeps the SLO at a rate 3 % above that of the defaults."
        )
    done = _simulated(world, task, best, task.jobs)
    machine = world.machine(best)
    if done is not None and machine is not None:
        if len(machine.groups) == 1:
            held = done.most_blocks * machine.groups[0].bytes_per_block
            whole = machine.groups[0].num_blocks * machine.groups[0].bytes_per_block
            notes.append(
                f"requests held at most {bytes_text(held)} of {bytes_text(whole)} of KV cache."
            )
        if done.cached_share:
            notes.append(
                f"{done.cached_share:.0%} of the prompt tokens came out of the prefix cache."
            )
        if done.num_preemptions:
            notes.append(f"requests gave way {done.num_preemptions} times for want of KV cache.")
    rate = rate_of(task.jobs) * max(1.0, found.capacity.get(best, 1.0))
    if len(task.jobs) / rate < _SHORT_S:
        notes.append(
            f"{len(task.jobs)} requests are {len(task.jobs) / rate:.1f} s of traffic at the highest rate: a queue may "
            "grow for longer than that; --num-prompts asks for more."
        )
    if isinstance(world, Planned):
        notes.append(
            "times are those of a roofline that was not measured with this build: the right size, no promise."
        )
    elif task.live_s <= 0:
        notes.append("nothing was run with these flags; --live-seconds does that.")
    return notes


def _points(task: Task, search: Search, default: Candidate) -> tuple[Point, ...]:
    found = []
    for (candidate, _), each in search.scores.items():
        cost = cost_per_million(each, task.price)
        if cost is not None:
            found.append(Point(flags=candidate.text(default), score=each, cost_per_million=cost))
    kept = set(front([(point.score.goodput, point.cost_per_million) for point in found]))
    return tuple(
        Point(
            flags=point.flags,
            score=point.score,
            cost_per_million=point.cost_per_million,
            is_on_front=index in kept,
        )
        for index, point in enumerate(found)
    )


def _traffic(jobs: Sequence[Job]) -> dict[str, float]:
    shared = BLOCK_SIZE // DIGEST_BYTES
    return traffic_of(
        [(job.prompt_len, job.output_len, len(job.names) * shared) for job in jobs], rate_of(jobs)
    )
