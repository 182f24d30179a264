"""What a tuning came to, put into words: verdict, notes, rows and points of the report. Pure over what was found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from octavo.core.kvspec import BLOCK_SIZE
from octavo.meter.frames import DIGEST_BYTES
from octavo.tools.bench.environment import environment
from octavo.tools.tables import bytes_text
from octavo.tools.tune.candidates import Candidate
from octavo.tools.tune.live import Live
from octavo.tools.tune.pool import Pool
from octavo.tools.tune.report import Point, Report, Row, cost_per_million, traffic_of
from octavo.tools.tune.search import LEAST, MOST, Found, Search, front
from octavo.tools.tune.simulate import simulate
from octavo.tools.tune.slo import IMPLIED_TTFT_MS
from octavo.tools.tune.task import Task
from octavo.tools.tune.traffic import Job, rate_of
from octavo.tools.tune.verify import TYPICAL, Residual, Told, cause
from octavo.tools.tune.worlds import Planned, World

CLOSE = 0.05
"""Share by which live goodput may be below another's without another choice."""
_SHORT_S = 10.0


class Ran(NamedTuple):
    """A live run, and what had been said of it."""

    live: Live
    told: Told
    residual: Residual

    def differing(self, tolerance: float) -> list[str]:
        """What was not as simulated."""
        return self.residual.differing(tolerance, self.live.score.goodput)


class Round(NamedTuple):
    """A search, and live runs of what it found."""

    world: World
    search: Search
    found: Found
    ranked: tuple[Candidate, ...]
    lives: dict[Candidate, Ran]
    tolerance: float

    @property
    def is_confirmed(self) -> bool | None:
        """Whether live runs gave what was simulated; None: there were none."""
        if not self.lives:
            return None
        return not any(ran.differing(self.tolerance) for ran in self.lives.values())


def report_of(rounds: Sequence[Round], task: Task, pool: Pool | None) -> Report:
    """Of the last round; what the ones before it failed by is noted."""
    last = rounds[-1]
    world, found, lives = last.world, last.found, last.lives
    rows = tuple([_row(last, task, candidate) for candidate in last.ranked])
    is_confirmed = last.is_confirmed
    trusted = found.best if is_confirmed is not False else world.default
    best = _chosen(trusted, lives)
    chosen_by = "simulation" if best == found.best and is_confirmed is not False else "live runs"
    changes = best.changes(world.default)
    row = rows[last.ranked.index(best)]
    verdict, is_met = _verdict(last, task, best, row)
    notes = [*_notes(last, task, best), *_pool_notes(pool, task)]
    notes += [note for ran in lives.values() for note in ran.live.notes]
    notes += [f"first round: {_differences(each)}." for each in rounds[:-1]]
    return Report(
        model=task.config.model,
        device=world.name,
        slo=task.slo,
        traffic=_traffic(task.jobs),
        calibration=world.facts(),
        recommended={**task.values, **changes},
        flags="" if not changes else best.text(world.default),
        chosen_by=chosen_by,
        verdict=f"{_word(last)}{verdict}",
        is_met=is_met,
        is_confirmed=is_confirmed,
        rows=rows,
        points=_points(task, last.search, world.default),
        num_simulations=sum(len(each.search.scores) for each in rounds),
        notes=tuple(notes),
        device_price=task.price,
        environment=environment(),
        pool=pool,
        num_rounds=len(rounds),
    )


def _word(last: Round) -> str:
    """What live runs say of the simulation."""
    if last.is_confirmed is None:
        return ""
    if last.is_confirmed:
        residuals = [ran.residual for ran in last.lives.values()]
        off = max(abs(each.off) for each in residuals)
        pairs = [each.times_ms[name] for each in residuals for name in TYPICAL]
        times = max(abs(told / took - 1) for told, took in pairs if took > 0)
        return (
            f"CONFIRMED: goodput of live runs was within {off:.0%} of that simulated, and median times of requests "
            f"within {times:.0%}. "
        )
    return (
        f"UNCONFIRMED: {_differences(last)}. So the flags are those that did clearly best in live runs, else the "
        "defaults, and simulated rates are no promise. "
    )


def _differences(last: Round) -> str:
    """What live runs did not confirm, and why as far as it is known."""
    parts = []
    for candidate, ran in last.lives.items():
        differing = ran.differing(last.tolerance)
        if differing:
            why = cause(ran.residual, last.tolerance, last.world.others)
            name = candidate.text(last.world.default)
            said = f"with {name} the simulation is off in {', '.join(differing)}"
            parts.append(f"{said} ({why})" if why else said)
    return "; ".join(parts)


def _row(last: Round, task: Task, candidate: Candidate) -> Row:
    simulated = last.search.at(candidate, 1.0)
    capacity = last.found.capacity.get(candidate)
    ran = last.lives.get(candidate)
    return Row(
        flags=candidate.text(last.world.default),
        values=candidate.changes(last.world.default),
        simulated=simulated,
        cost_per_million=cost_per_million(simulated, task.price),
        most_rate=None if capacity is None else capacity * rate_of(task.jobs),
        live=None if ran is None else ran.live.score,
        simulated_alike=None if ran is None else ran.told.score,
        residual=None if ran is None else ran.residual,
    )


def _chosen(trusted: Candidate, lives: dict[Candidate, Ran]) -> Candidate:
    """The simulation's best, or the defaults where live runs did not confirm it, unless another did clearly better when
    it ran.
    """
    if trusted not in lives:
        return trusted
    goodput = {candidate: ran.live.score.goodput for candidate, ran in lives.items()}
    most = max(goodput, key=goodput.__getitem__)
    is_close = goodput[trusted] >= (1 - CLOSE) * goodput[most]
    return trusted if is_close else most


def _verdict(last: Round, task: Task, best: Candidate, row: Row) -> tuple[str, bool]:
    """What was reached, and whether it is what was asked for."""
    world, search = last.world, last.search
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


def _notes(last: Round, task: Task, best: Candidate) -> list[str]:
    world, found = last.world, last.found
    notes = []
    if task.slo.is_implied:
        notes.append(
            f"nothing was asked of first tokens; {IMPLIED_TTFT_MS / 1e3:g} s at p99 were assumed."
        )
    if found.best == world.default:
        notes.append(
            "no flag that was tried keeps the SLO at a rate 3 % above that of the defaults."
        )
    machine = world.machine(best)
    if machine is not None:
        done = simulate(task.jobs, machine, world.times, task.seed)
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


def _pool_notes(pool: Pool | None, task: Task) -> list[str]:
    if pool is None:
        return []
    rate = rate_of(task.jobs)
    notes = []
    if pool.is_spare:
        notes.append(
            f"simulated, {bytes_text(pool.least_bytes)} of the {bytes_text(pool.num_bytes)} of KV cache are enough for the "
            f"SLO at {pool.capacity * rate:.3g} requests/s: --kv-cache-memory-bytes {pool.least_bytes} leaves the rest to "
            "others."
        )
    if pool.doubled is not None:
        notes.append(
            f"the KV cache is the limit: with twice as much of it the SLO would hold up to {pool.doubled * rate:.3g} "
            "requests/s, simulated."
        )
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
