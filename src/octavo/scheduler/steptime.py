"""Fits the line of `core/steptime.py` to measured steps, a few microseconds per step. No clock: the engine measures.

Weighted least squares on sufficient statistics. Three things make it fit for service:

- Steps are kept apart by size (tokens and context per token, powers of two and four) and by whether they have chunks.
  Each kind forgets at its own pace, after about MEMORY steps of that kind, so that a night of decodes does not wash out
  what a chunk costs.
- Errors count relative to the prediction, and one beyond a few usual errors counts as that much only (Huber, 1964): a
  pause of the machine moves nothing. Not so the first few steps of a kind: the line says little of what it was not fitted
  to. Where step after step lies on the same side, all kinds are scaled: a machine that stays slower is followed within a
  hundred steps or so.
- Steps with and without chunks have a base each, and share the other coefficients. None is negative: of the sets of
  coefficients held at zero, the best that leaves none negative is taken. Where steps of one size cannot tell base and
  token apart, what they cost is the base's.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from octavo.core.plan import Decodes, StepPlan
from octavo.core.steptime import StepTime, attended

MEMORY = 64
"""Steps of one kind after which an old one counts 1/e."""
WARM_UP = 16
"""Steps before the line is used, and before errors are bounded."""
NEW_KIND = 8
"""Steps of a kind before its errors are bounded. Until then slow steps weigh little (1 / measured**2): a first step is
often slow."""
REFIT_EVERY = 32
"""Steps between two solutions; one takes about 50 us."""
QUANTILE = 0.8
_PACE = 0.04
"""Relative change of the error's quantile per step; about a hundred steps to follow."""
_BOUND = 3.0
"""Usual errors up to which a measurement is believed."""
_LEAST_ERROR = 0.05
_SHIFT_STEPS = 16
_SHIFT = 1.15
_RIDGE = (1e-9, 1e-9, 1e-4, 1e-4)
_ALIKE = 0.005
"""Weight, of that of the steps, of the prior that both bases are the same: chunks of one size cannot tell base and token
apart."""
_SETS = tuple(chosen for size in (4, 3, 2, 1) for chosen in itertools.combinations(range(4), size))

_Kind = tuple[bool, int, int]


class StepTimeFit:
    """Owner: the scheduler. `line` is what is known now; before WARM_UP steps it may be far off.

    Sums are those of weight x (1, t, c, tt, tc, cc, y, ty, cy), of t tokens, c context and y seconds.
    """

    def __init__(self) -> None:
        self.line = StepTime()
        self._error = 0.25
        self._num_steps = 0
        self._kinds: dict[_Kind, list[float]] = {}
        self._seen: dict[_Kind, int] = {}
        self._ratio = 1.0  # measured to predicted, of late
        self._side = 0.0  # -1 .. 1: on which side of the prediction steps lie

    @property
    def is_fitted(self) -> bool:
        """Whether the line says more than the first few steps do."""
        return self._num_steps > WARM_UP

    def observe(
        self, tokens: int, context: float, elapsed_s: float, *, is_mixed: bool = False
    ) -> None:
        """Take one step. One that ran nothing or was not measured says nothing."""
        if tokens < 1 or elapsed_s <= 0:
            return
        self._num_steps += 1
        kind = (is_mixed, tokens.bit_length(), int(context / tokens).bit_length() // 2)
        seen = self._seen[kind] = self._seen.get(kind, 0) + 1
        is_new = self._num_steps <= WARM_UP or seen <= NEW_KIND
        seconds = scale = elapsed_s
        expected = self.line.predict(tokens, context, is_mixed=is_mixed)
        if not is_new and expected > 0:
            seconds = self._believed(elapsed_s, expected)
            scale = expected
        self._add(kind, (tokens, context, seconds), 1.0 / (scale * scale))
        if is_new or self._num_steps % REFIT_EVERY == 0:
            self._refit()

    def _believed(self, elapsed_s: float, expected: float) -> float:
        """What is believed of a measurement; also moves the quantile of errors and the trend."""
        off = abs(elapsed_s - expected) / expected
        self._error *= math.exp(_PACE * (QUANTILE if off > self._error else QUANTILE - 1))
        self._error = min(max(self._error, 1e-3), 10.0)
        most = 1 + _BOUND * max(self._error, _LEAST_ERROR)
        ratio = min(max(elapsed_s / expected, 1 / most), most)
        self._ratio += (ratio - self._ratio) / _SHIFT_STEPS
        self._side += ((1.0 if ratio > 1 else -1.0) - self._side) / _SHIFT_STEPS
        return ratio * expected

    def _add(self, kind: _Kind, step: tuple[int, float, float], weight: float) -> None:
        t, c, seconds = step
        w = weight
        wt, wc = w * t, w * c
        new = (w, wt, wc, wt * t, wt * c, wc * c, w * seconds, wt * seconds, wc * seconds)
        sums = self._kinds.get(kind)
        if sums is None:
            sums = self._kinds[kind] = [0.0] * 9
        for at, value in enumerate(new):
            sums[at] += value - sums[at] / MEMORY

    def _refit(self) -> None:
        if abs(self._side) > 0.7 and not 1 / _SHIFT < self._ratio < _SHIFT:
            # All steps are slower, or all faster: the machine changed, so what is known of other kinds did, too.
            for sums in self._kinds.values():
                sums[6:] = [self._ratio * value for value in sums[6:]]
            self._ratio, self._side = 1.0, 0.0
        plain = _total(sums for kind, sums in self._kinds.items() if not kind[0])
        mixed = _total(sums for kind, sums in self._kinds.items() if kind[0])
        base_s, mixed_s, token_s, context_s = _solve(plain, mixed)
        # Of steps that never were, the others' base is the best guess.
        base_s = base_s if plain[0] else mixed_s
        mixed_s = mixed_s if mixed[0] else base_s
        self.line = StepTime(
            base_s=base_s,
            chunk_s=mixed_s - base_s,
            token_s=token_s,
            context_s=context_s,
            error=self._error,
            num_steps=self._num_steps,
        )


def _total(kinds: Iterable[list[float]]) -> list[float]:
    return [sum(column) for column in zip(*kinds, strict=True)] or [0.0] * 9


def context_of(plan: StepPlan) -> float:
    """Tokens of context that a step's slices attend to."""
    slices = plan.slices
    if isinstance(slices, Decodes):
        return slices.context
    return sum([p.start + 1 if p.count == 1 else attended(p.start, p.count) for p in slices])


def is_mixed(plan: StepPlan) -> bool:
    """Whether some sequence has more than one token in a step."""
    return not isinstance(plan.slices, Decodes) and plan.num_tokens > len(plan.slices)


def _solve(plain: list[float], mixed: list[float]) -> list[float]:
    """The non-negative coefficients with the least weighted error: both bases, per token, per token of context."""
    square, right = _normal(plain, mixed)
    # Scaled so that the diagonal is 1: tokens and contexts differ by orders of magnitude.
    scale = [math.sqrt(square[i][i]) or 1.0 for i in range(4)]
    matrix = [
        [square[i][j] / (scale[i] * scale[j]) + (_RIDGE[i] if i == j else 0.0) for j in range(4)]
        for i in range(4)
    ]
    right = [value / size for value, size in zip(right, scale, strict=True)]
    best, best_gain = [0.0] * 4, 0.0
    for chosen in _SETS:
        found = _solve_chosen(matrix, right, chosen)
        if found is None:
            continue
        # At the minimum over these coefficients the squared error has fallen by right . found.
        gain = sum(right[i] * value for i, value in zip(chosen, found, strict=True))
        if gain > best_gain:
            best_gain, best = gain, [0.0] * 4
            for i, value in zip(chosen, found, strict=True):
                best[i] = value / scale[i]
            if len(chosen) == 4:
                break
    return best


def _normal(plain: list[float], mixed: list[float]) -> tuple[list[list[float]], list[float]]:
    """The normal equations of the four coefficients."""
    _, _, _, tt, tc, cc, _, ty, cy = [a + b for a, b in zip(plain, mixed, strict=True)]
    alike = _ALIKE * min(plain[0], mixed[0])
    square = [
        [plain[0] + alike, -alike, plain[1], plain[2]],
        [-alike, mixed[0] + alike, mixed[1], mixed[2]],
        [plain[1], mixed[1], tt, tc],
        [plain[2], mixed[2], tc, cc],
    ]
    return square, [plain[6], mixed[6], ty, cy]


def _solve_chosen(
    matrix: list[list[float]], right: list[float], chosen: tuple[int, ...]
) -> list[float] | None:
    """Gaussian elimination of the chosen rows and columns; None when singular or when one comes out negative."""
    rows = [[*(matrix[i][j] for j in chosen), right[i]] for i in chosen]
    size = len(rows)
    for at in range(size):  # positive definite: no pivoting needed
        pivot = rows[at][at]
        if pivot < 1e-13:
            return None
        for below in range(at + 1, size):
            factor = rows[below][at] / pivot
            rows[below] = [a - factor * b for a, b in zip(rows[below], rows[at], strict=True)]
    found = [0.0] * size
    for at in reversed(range(size)):
        known = sum(rows[at][j] * found[j] for j in range(at + 1, size))
        found[at] = (rows[at][size] - known) / rows[at][at]
    return found if min(found) >= 0 else None
