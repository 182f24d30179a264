"""Whether a live run gave what a simulation of the same requests had said, and if not, what the difference is made of.

Goodput alone says little: far from the knee anything gives all of it, and at the knee a few milliseconds give or take half.
So it is also compared by the rate at which the simulation would have given as much, and times by their quantiles. What is
left is put down to the machine where steps took another time than was calibrated, and to the simulation where its requests
come out otherwise on the machine as it was in that run, half a second at a time. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from octavo.tools.bench import stats
from octavo.tools.bench.stats import Record, percentile
from octavo.tools.tune.simulate import Machine, StepTimes, simulate
from octavo.tools.tune.slo import Score, Slo, score
from octavo.tools.tune.steptimes import WINDOW_S, Fitted, Seen, windows_of
from octavo.tools.tune.traffic import Job, rate_of, scaled

SEEDS = 5
"""Simulations of the same requests, each with other draws of what varies."""
COMPARED = (("ttft", 50), ("ttft", 90), ("tpot", 50), ("tpot", 90), ("itl", 99))
QUANTILES = tuple(range(5, 100, 5))
TYPICAL = ("ttft p50", "tpot p50")
"""What must agree beside goodput: tails rest on a few requests of a short run."""
_LEAST_MS = {"ttft": 5.0, "tpot": 1.0, "itl": 1.0}
"""Differences that are noise, whatever their share."""
_RATE_STEP = 1.05
_MOST_RATE = 2.0


class Told(NamedTuple):
    """A simulation of the requests of a live run."""

    score: Score
    """Of all seeds together."""
    low: float
    """Least goodput of a seed."""
    high: float
    records: list[Record]
    ranges_ms: dict[str, tuple[float, float]]
    """Least and most of TYPICAL over the seeds."""


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """What a live run and the simulation of its requests differ by."""

    off: float
    """Simulated goodput over live goodput, less one."""
    low: float
    high: float
    """Goodput of single seeds."""
    rate: float | None
    """Times the rate at which the simulation gives the live run's share of good requests; None: at none near."""
    times_ms: dict[str, tuple[float, float]]
    """Quantile -> simulated and live."""
    ranges_ms: dict[str, tuple[float, float]] = {}
    """Least and most of typical times that single seeds gave."""
    quantiles_ms: dict[str, tuple[tuple[float, float], ...]]
    """TTFT and TPOT at QUANTILES: simulated and live."""
    steps: float | None = None
    """What the live run's steps took, over what they should have by calibration."""
    as_it_was: dict[str, float] | None = None
    """On the machine as it was in that run: goodput and typical times, simulated over live, less one."""
    as_it_was_ms: dict[str, tuple[float, ...]] = {}
    """TTFT and TPOT there, at QUANTILES."""
    others: float | None = None
    """Cores that others used meanwhile."""

    def goodput_agrees(self, tolerance: float, live: float) -> bool:
        """By its size, within what seeds give, or by the rate."""
        if abs(self.off) <= tolerance or self.low <= live <= self.high:
            return True
        return self.rate is not None and 1 / (1 + tolerance) <= self.rate <= 1 + tolerance

    def differing(self, tolerance: float, live: float) -> list[str]:
        """What does not agree."""
        found = [] if self.goodput_agrees(tolerance, live) else [f"goodput by {self.off:+.0%}"]
        for name in TYPICAL:
            told, took = self.times_ms[name]
            low, high = self.ranges_ms.get(name, (told, told))
            if not low <= took <= high and not _is_close(name, told, took, tolerance):
                found.append(f"{_title(name)} by {told / took - 1:+.0%}")
        return found


def told(
    jobs: Sequence[Job], machine: Machine, times: StepTimes, slo: Slo, num_seeds: int = SEEDS
) -> Told:
    """Simulate, several times over."""
    runs = [simulate(jobs, machine, times, seed).records for seed in range(num_seeds)]
    rate = rate_of(jobs)
    each = [score(records, slo, rate).goodput for records in runs]
    records = [record for run in runs for record in run]
    ranges = {name: _range([_quantile(run, name) for run in runs]) for name in TYPICAL}
    return Told(score(records, slo, rate, num_seeds), min(each), max(each), records, ranges)


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def residual(
    jobs: Sequence[Job],
    machine: Machine,
    times: StepTimes,
    slo: Slo,
    ran: tuple[Score, Sequence[Record], Seen | None],
    *,
    others: float | None = None,
    num_seeds: int = SEEDS,
) -> tuple[Told, Residual]:
    """Of a live run of these jobs on what should be this machine."""
    live, records, seen = ran
    found = told(jobs, machine, times, slo, num_seeds)

    def share(factor: float) -> float:
        return told(scaled(jobs, factor), machine, times, slo, num_seeds).score.good_share

    took = steps = None
    there: dict[str, tuple[float, ...]] = {}
    if isinstance(times, Fitted) and seen is not None and seen.samples:
        should = times.pace * sum(map(times.expected_s, seen.samples))
        steps = sum(sample.elapsed_s for sample in seen.samples) / should
        took, there = _as_it_was(jobs, machine, times, slo, ran)
    return found, Residual(
        off=_off(found.score.goodput, live.goodput),
        low=found.low,
        high=found.high,
        rate=_rate(share, found.score.good_share, live.good_share, len(jobs)),
        ranges_ms=found.ranges_ms,
        times_ms={
            f"{name} p{percent}": (_ms(found.records, name, percent), _ms(records, name, percent))
            for name, percent in COMPARED
        },
        quantiles_ms={
            name: tuple([(_ms(found.records, name, p), _ms(records, name, p)) for p in QUANTILES])
            for name in ("ttft", "tpot")
        },
        steps=steps,
        as_it_was=took,
        as_it_was_ms=there,
        others=others,
    )


def _off(simulated: float, measured: float) -> float:
    """By what share a simulation says more; beside nothing, anything is all of it."""
    if measured <= 0:
        return 0.0 if simulated <= 0 else 1.0
    return simulated / measured - 1


def _rate(share: Callable[[float], float], here: float, live: float, num_jobs: int) -> float | None:
    """Walk to where the simulated share crosses the live one; within a request they are the same."""
    if abs(here - live) <= 1 / num_jobs:
        return 1.0
    factor, step = 1.0, _RATE_STEP if here > live else 1 / _RATE_STEP
    while 1 / _MOST_RATE < factor < _MOST_RATE:
        factor *= step
        if (share(factor) > live) != (here > live):
            return factor
    return None


def _as_it_was(
    jobs: Sequence[Job],
    machine: Machine,
    times: Fitted,
    slo: Slo,
    ran: tuple[Score, Sequence[Record], Seen | None],
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """Differences, and times at QUANTILES."""
    live, records, seen = ran
    assert seen is not None
    windows = windows_of(seen, times) or [1.0]

    def slowness(at: float) -> float:
        return windows[min(int(at / WINDOW_S), len(windows) - 1)]

    runs = [simulate(jobs, machine, times, seed, slowness) for seed in range(SEEDS)]
    simulated = [record for run in runs for record in run.records]
    found = {"goodput": _off(score(simulated, slo, live.rate, SEEDS).goodput, live.goodput)}
    for name in TYPICAL:
        found[name] = _off(_quantile(simulated, name), _quantile(records, name))
    times_ms = {n: tuple([_ms(simulated, n, p) for p in QUANTILES]) for n in ("ttft", "tpot")}
    return found, times_ms


def _quantile(records: Sequence[Record], name: str) -> float:
    metric, percent = name.split(" p")
    return _ms(records, metric, int(percent))


def _ms(records: Sequence[Record], name: str, percent: float) -> float:
    good = stats.completed(records)
    if name == "itl":
        values = [gap for record in good for gap in record.gaps]
    else:
        found = [getattr(record, name) for record in good]
        values = [value for value in found if value is not None]
    return percentile(values or [0.0], percent) * 1e3


def _is_close(name: str, simulated: float, live: float, tolerance: float) -> bool:
    off = abs(simulated - live)
    return off <= _LEAST_MS[name.split(maxsplit=1)[0]] or (
        math.isfinite(live) and 1 / (1 + tolerance) <= simulated / max(live, 1e-9) <= 1 + tolerance
    )


def _title(name: str) -> str:
    metric, quantile = name.split()
    return f"{quantile} {metric.upper()}"


def cause(found: Residual, tolerance: float, calibrated: float | None) -> str:
    """Why they differ, as far as it can be told: a clause; `calibrated` is what others used of the cores before."""
    parts = []
    if found.steps is not None:
        parts.append(f"steps took {found.steps:.2f} x what calibration said of them")
    if found.others is not None and calibrated is not None:
        parts.append(f"others used {found.others:.1f} cores meanwhile and {calibrated:.1f} then")
    if found.as_it_was is not None:
        worst = max(found.as_it_was.values(), key=abs)
        if abs(worst) <= tolerance:
            parts.append(
                f"simulated on the machine as it was in that run all is within {abs(worst):.0%}, so the machine changed "
                "and the simulation is right"
            )
        else:
            parts.append(
                f"simulated on the machine as it was in that run it is still {worst:+.0%} off, so something is not simulated"
            )
    return "; ".join(parts)
