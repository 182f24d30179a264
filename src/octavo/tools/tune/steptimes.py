"""What a step takes on the machine that is tuned for: fitted to recorded steps, or told by `octavo plan`'s roofline. Pure.

Recorded steps are fitted by a curve over the tokens of a step, through powers of two, one for steps of decodes alone and
one for those with chunks, and a line over the context that is attended to. Curves and not lines, since products of few
rows cost what reading the weights costs, and of many rows what multiplying does. What the fit leaves over is drawn again,
so that the tail of a simulation is that of the machine.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.core.plan import Decodes, Slice
from octavo.core.steptime import attended
from octavo.tools.plan.speed import Network, Speed, between
from octavo.tools.tune.simulate import Way

LEAST_STEPS = 50
WINDOW_S = 0.5
"""Of the machine's pace: others come and go within seconds."""
_USUAL_S = 0.05
"""Of steps at the usual pace, which each window is taken to have beside its own."""
_ROUNDS = 5
_BOUND = 2.0
"""Usual errors beyond which a step counts less (Huber)."""
_SMOOTH = 0.02
_NUM_RATIOS = 512
_MOST_RATIO = 20.0

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """A recorded step."""

    num_decodes: int
    num_chunk_tokens: int
    context: float
    """Tokens attended to."""
    elapsed_s: float
    gap_s: float | None
    """Until the next step; None where there was nothing to do in between."""


class Seen(NamedTuple):
    """What was measured under a load."""

    since: float
    """When it began, on the machine's clock."""
    samples: list[Sample]
    begins: list[float]
    """Of the samples' steps."""
    ways: list[Way]
    wakes: list[float]
    """Seconds from a request's coming to its first step, where the loop slept."""
    delays: list[float]
    """Seconds from the end of a step to callers who read on."""
    is_traffic: bool
    """Whether the load was the traffic itself, so that what varies varies as it does there."""


Points = tuple[tuple[int, float], ...]
Ratios = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Fitted:
    """Fitted to recorded steps of a live run."""

    plain: Points
    """(tokens, seconds) of steps of decodes alone."""
    mixed: Points
    """The same, of steps with chunks."""
    context_s: float
    gap: tuple[float, float]
    """Seconds between steps: of any, and per row."""
    ratios: tuple[Ratios, Ratios]
    """Measured to fitted, at the pace of their window: of steps of decodes alone, and of those with chunks."""
    windows: Ratios
    """The machine's pace, each for WINDOW_S, in the order in which it was measured: what slows one step slows the next."""
    pace: float
    """What steps under the traffic took over `expected_s`: about 1."""
    gap_ratios: Ratios
    ways: tuple[Way, ...]
    wakes: Ratios
    delays: Ratios
    error: float
    """Median of |measured - fitted| / fitted."""
    num_steps: int
    num_typical: int
    """Of these, steps under the traffic itself."""

    def predict(self, tokens: int, context: float, *, is_mixed: bool) -> float:
        """Seconds of a step, at the middle of what was measured."""
        points = self.mixed if is_mixed else self.plain
        return between(points, max(tokens, points[0][0])) + self.context_s * context

    def step_s(self, slices: Sequence[Slice], rng: random.Random) -> float:
        """With one of the measured deviations."""
        if isinstance(slices, Decodes):
            seconds = self.predict(len(slices), slices.context, is_mixed=False)
            return seconds * rng.choice(self.ratios[0])
        tokens = sum([piece.count for piece in slices])
        is_mixed = tokens > len(slices)
        seconds = self.predict(tokens, _context(slices), is_mixed=is_mixed)
        return seconds * rng.choice(self.ratios[is_mixed])

    def gap_s(self, num_rows: int, rng: random.Random) -> float:
        """With one of the measured deviations."""
        return (self.gap[0] + self.gap[1] * num_rows) * rng.choice(self.gap_ratios)

    def way(self, rng: random.Random) -> Way:
        """One of the measured ones."""
        return rng.choice(self.ways)._replace(wake_s=rng.choice(self.wakes))

    def delay_s(self, rng: random.Random) -> float:
        """One of the measured ones."""
        return rng.choice(self.delays)

    def slowness(self, rng: random.Random) -> Callable[[float], float] | None:
        """The measured pace over time, from some moment on and around."""
        first, windows = rng.randrange(len(self.windows)), self.windows
        return lambda at: windows[(first + int(at / WINDOW_S)) % len(windows)]

    def expected_s(self, sample: Sample) -> float:
        """What a recorded step would take on average at the usual pace."""
        mixed = sample.num_chunk_tokens > 0
        tokens = sample.num_decodes + sample.num_chunk_tokens
        pool = self.ratios[mixed]
        return self.predict(tokens, sample.context, is_mixed=mixed) * sum(pool) / len(pool)


@dataclass(frozen=True, slots=True)
class Told:
    """By a roofline: no machine was measured, so nothing varies."""

    network: Network
    speed: Speed

    def step_s(self, slices: Sequence[Slice], rng: random.Random) -> float:
        """As a plan has it: products, head, keys of decodes, pairs of chunks, the rest."""
        del rng
        network, speed = self.network, self.speed
        tokens = sum([piece.count for piece in slices])
        reads = [network.kv_bytes(p.start + 1) for p in slices if p.count == 1]
        pairs = sum([network.pairs(p.start, p.count) for p in slices if p.count > 1])
        seconds = speed.layers_s(tokens) + speed.head_s(sum([p.sample for p in slices]))
        seconds += speed.keys_s(sum(reads), max(1, len(reads)))
        return seconds + speed.pairs_s(pairs) + speed.rest_s(tokens)

    def gap_s(self, num_rows: int, rng: random.Random) -> float:
        """None: `rest_s` has the loop in it."""
        del num_rows, rng
        return 0.0

    def way(self, rng: random.Random) -> Way:
        """None is known."""
        del rng
        return Way(0.0, 0.0)

    def delay_s(self, rng: random.Random) -> float:
        """None is known."""
        del rng
        return 0.0

    def slowness(self, rng: random.Random) -> None:
        """None: a roofline is always the same."""
        del rng


def _context(slices: Sequence[Slice]) -> float:
    return sum([p.start + 1 if p.count == 1 else attended(p.start, p.count) for p in slices])


def fit(seen: Sequence[Seen]) -> Fitted:
    """The curves through all steps, of which there are LEAST_STEPS at least; what varies is drawn from those under the
    traffic itself, where they are enough.
    """
    samples = [sample for each in seen for sample in each.samples]
    typical = [sample for each in seen if each.is_traffic for sample in each.samples]
    assert len(samples) >= LEAST_STEPS
    points, context_s = _curves(samples)
    bare = Fitted(
        plain=points[0],
        mixed=points[1],
        context_s=context_s,
        gap=(0.0, 0.0),
        ratios=((1.0,), (1.0,)),
        windows=(1.0,),
        pace=1.0,
        gap_ratios=(1.0,),
        ways=_typical(seen, "ways") or (Way(0.0, 0.0),),
        wakes=_quantiles(_typical(seen, "wakes")) or (0.0,),
        delays=_quantiles(_typical(seen, "delays")) or (0.0,),
        error=0.0,
        num_steps=len(samples),
        num_typical=len(typical),
    )
    pools = [_deviations(bare, typical, samples, is_mixed) for is_mixed in (False, True)]
    even = replace(bare, ratios=(pools[0], pools[1]))
    enough = len(typical) >= LEAST_STEPS
    windows: list[float] = []
    calm: list[Sample] = []
    for each in seen:
        if each.is_traffic and enough:
            paces = windows_of(each, even, _USUAL_S)
            windows += paces
            at = [int((begun - each.since) / WINDOW_S) for begun in each.begins]
            calm += [
                sample._replace(elapsed_s=sample.elapsed_s / paces[window])
                for sample, window in zip(each.samples, at, strict=True)
            ]
    if enough:
        pools = [_deviations(bare, calm, samples, is_mixed) for is_mixed in (False, True)]
    found = replace(even, ratios=(pools[0], pools[1]), windows=tuple(windows) or (1.0,))
    own = typical if enough else samples
    pace = sum(s.elapsed_s for s in own) / sum(map(found.expected_s, own))
    off = np.abs(np.array([s.elapsed_s / bare.expected_s(s) for s in samples]) - 1)
    gap, gap_ratios = _gaps(own)
    return replace(
        found,
        pace=pace,
        gap=gap,
        gap_ratios=gap_ratios,
        error=float(np.median(off)),
    )


def windows_of(seen: Seen, times: Fitted, usual_s: float = 0.0) -> list[float]:
    """What steps took over what is expected of them, in each WINDOW_S since the load began."""
    took: dict[int, list[float]] = {}
    for sample, begun in zip(seen.samples, seen.begins, strict=True):
        sums = took.setdefault(max(0, int((begun - seen.since) / WINDOW_S)), [0.0, 0.0])
        sums[0] += sample.elapsed_s
        sums[1] += times.expected_s(sample)
    # A few steps say little of a window: what one of them took is its own deviation.
    ratios = {window: (usual_s + a) / (usual_s + b) for window, (a, b) in took.items()}
    found: list[float] = []
    for window in range(max(ratios, default=-1) + 1):
        # Nothing ran: as before.
        found.append(ratios.get(window, found[-1] if found else 1.0))
    return found


def _curves(samples: Sequence[Sample]) -> tuple[tuple[Points, Points], float]:
    """Of steps of decodes alone and of those with chunks, and the seconds per token of context."""
    tokens = [s.num_decodes + s.num_chunk_tokens for s in samples]
    is_mixed = [s.num_chunk_tokens > 0 for s in samples]
    knots = (
        _knots([t for t, mixed in zip(tokens, is_mixed, strict=True) if not mixed]),
        _knots([t for t, mixed in zip(tokens, is_mixed, strict=True) if mixed]),
    )
    rows = np.zeros((len(samples), len(knots[0]) + len(knots[1]) + 1))
    for index, sample in enumerate(samples):
        first = len(knots[0]) if is_mixed[index] else 0
        for at, share in _shares(knots[is_mixed[index]], tokens[index]):
            rows[index, first + at] = share
        rows[index, -1] = sample.context
    seconds = np.array([sample.elapsed_s for sample in samples])
    found = _solve(rows, seconds, knots)
    if found[-1] < 0:
        rows[:, -1] = 0.0
        found = _solve(rows, seconds, knots)
    curves = [_rising(found[: len(knots[0])]), _rising(found[len(knots[0]) : -1])]
    points = [
        tuple(zip(knots[i], map(float, curves[i]), strict=True)) for i in range(2) if knots[i]
    ]
    return (points[0], points[-1]), float(found[-1])


def _typical(seen: Sequence[Seen], name: str) -> tuple[Any, ...]:
    """What is known of the traffic itself, else of any load."""
    own = [value for each in seen if each.is_traffic for value in getattr(each, name)]
    return tuple(own) or tuple(value for each in seen for value in getattr(each, name))


def _deviations(
    fitted: Fitted, typical: Sequence[Sample], samples: Sequence[Sample], is_mixed: bool
) -> Ratios:
    """Measured to fitted, of steps of a kind; where there are few, of any kind."""
    for pool in (typical, samples):
        chosen = [s for s in pool if (s.num_chunk_tokens > 0) == is_mixed]
        if len(chosen) >= LEAST_STEPS // 2:
            break
    else:
        chosen = list(samples)
    return _ratios(np.array([s.elapsed_s / fitted.expected_s(s) for s in chosen]))


def _knots(tokens: Sequence[int]) -> tuple[int, ...]:
    """Powers of two between the least and the most that occur, and these themselves."""
    if not tokens:
        return ()
    least, most = min(tokens), max(tokens)
    powers = [1 << power for power in range(least.bit_length(), most.bit_length())]
    # A last stretch that is short would be the noise of a few steps.
    inner = [power for power in powers if least < power < most / 1.3]
    return tuple(sorted({least, most, *inner}))


def _shares(knots: tuple[int, ...], tokens: int) -> list[tuple[int, float]]:
    """Where a number of tokens lies between knots."""
    at = min(max(1, int(np.searchsorted(knots, tokens))), len(knots) - 1) if len(knots) > 1 else 0
    if at == 0:
        return [(0, 1.0)]
    low, high = knots[at - 1], knots[at]
    share = (tokens - low) / (high - low)
    return [(at - 1, 1 - share), (at, share)]


def _solve(rows: Array, seconds: Array, knots: tuple[tuple[int, ...], tuple[int, ...]]) -> Array:
    """Least squares of relative errors, those beyond a few usual ones counting less; knots that few steps are near to
    follow their neighbours.
    """
    smooth = []
    first = 0
    for each in knots:
        for at in range(1, len(each) - 1):
            row = np.zeros(rows.shape[1])
            left = (each[at + 1] - each[at]) / (each[at + 1] - each[at - 1])
            row[first + at - 1 : first + at + 2] = (left, -1.0, 1 - left)
            smooth.append(row)
        first += len(each)
    usual = float(np.median(seconds))
    bend = np.array(smooth).reshape(-1, rows.shape[1]) * (_SMOOTH * math.sqrt(len(rows)) / usual)
    most = np.abs(rows).max(axis=0)
    scale = np.where(most > 0, most, 1.0)  # no step is near to some knots
    weights = np.ones(len(rows))
    found = np.zeros(rows.shape[1])
    expected = seconds
    for _ in range(_ROUNDS):
        by = weights / expected
        system = np.vstack([rows * by[:, None], bend]) / scale
        right = np.concatenate([seconds * by, np.zeros(len(bend))])
        found = np.linalg.lstsq(system, right, rcond=1e-9)[0] / scale
        expected = np.maximum(rows @ found, usual * 1e-3)
        off = np.abs(seconds / expected - 1)
        bound = _BOUND * max(float(np.median(off)), 1e-3)
        weights = np.sqrt(np.minimum(1.0, bound / np.maximum(off, 1e-12)))
    return found


def _rising(values: Array) -> Array:
    """More tokens take no less."""
    return np.maximum.accumulate(np.maximum(values, 1e-6)) if len(values) else values


def _gaps(samples: Sequence[Sample]) -> tuple[tuple[float, float], Ratios]:
    known = [(s.num_decodes + (s.num_chunk_tokens > 0), s.gap_s) for s in samples if s.gap_s]
    if len(known) < LEAST_STEPS // 2:
        return (0.0, 0.0), (1.0,)
    gaps: Array = np.array([gap for _, gap in known])
    rows = np.array([[1.0, num] for num, _ in known])
    by: Array = np.ones(len(gaps))
    found: Array = np.zeros(2)
    for _ in range(_ROUNDS):
        found = np.asarray(
            np.linalg.lstsq(rows * by[:, None], gaps * by, rcond=None)[0], np.float64
        )
        off = np.abs(gaps - rows @ found)
        bound = _BOUND * max(float(np.median(off)), 1e-7)
        by = np.sqrt(np.minimum(1.0, bound / np.maximum(off, 1e-12)))
    base, per_row = max(0.0, float(found[0])), max(0.0, float(found[1]))
    fitted = np.maximum(base + per_row * rows[:, 1], 1e-7)
    return (base, per_row), _ratios(gaps / fitted)


def _ratios(values: Array) -> Ratios:
    """What stands for all of them."""
    return _quantiles(np.clip(values, 1 / _MOST_RATIO, _MOST_RATIO))


def _quantiles(values: Sequence[float] | Array) -> Ratios:
    """Evenly spread; empty of nothing."""
    if not len(values):
        return ()
    where = (np.arange(_NUM_RATIOS) + 0.5) / _NUM_RATIOS
    return tuple(map(float, np.quantile(values, where)))
