"""How far predictions can be trusted, learned from what came of them: an interval that holds as often as it says.

Conformal prediction: the interval is a pair of quantiles of late ratios actual / predicted, so it needs no model of
the error. Load drifts, and what was learned lags behind; so the two levels are steered, too, by whether late intervals
held (Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift", 2021). Knows numbers, not requests.
"""

from __future__ import annotations

import bisect
import math
from collections import deque
from typing import NamedTuple

COVERAGE = 0.8
"""Of the actual times, the share that is to lie inside the interval."""
LEAST = 32
"""Outcomes before which nothing is promised."""
_TAIL = (1.0 - COVERAGE) / 2
_KEPT = 512
"""Late outcomes looked at. Errors of neighbours in a queue are alike: of a few hundred, quantiles are too narrow."""
_STEER = 0.005
"""How far one outcome moves a level. Outcomes come as late as the queue is long, and at 0.02 levels overshot."""
_OUTER = 0.005
_INNER = 0.2
_LEAST_RATIO = 1e-3
_MOST_RATIO = 1e3


class Window:
    """The last numbers of a stream, and their quantiles."""

    def __init__(self, size: int = _KEPT) -> None:
        self._size = size
        self._late: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._late)

    def add(self, value: float) -> None:
        """Take one; the oldest leaves."""
        if len(self._late) == self._size:
            del self._sorted[bisect.bisect_left(self._sorted, self._late.popleft())]
        self._late.append(value)
        bisect.insort(self._sorted, value)

    def quantile(self, level: float) -> float:
        """The value that a share of `level` does not exceed; there must be one."""
        return self._sorted[min(len(self._sorted) - 1, int(level * len(self._sorted)))]

    def between(self, low: float, high: float) -> tuple[float, float]:
        """Bounds that the next number, if it is like these, exceeds as often as the levels say, or less.

        Of n numbers the next falls below the k-th with probability k / (n + 1): of few, further out than quantiles.
        """
        num = len(self._sorted)
        first = max(0, math.floor((num + 1) * low) - 1)
        last = min(num - 1, math.ceil((num + 1) * high) - 1)
        return self._sorted[first], self._sorted[last]


class Interval(NamedTuple):
    """Factors on a prediction: where the actual time lies in COVERAGE of all cases, and in the middle."""

    low: float
    middle: float
    high: float


class Calibration:
    """Ratios of one kind of prediction. Owner: `Admission`."""

    def __init__(self) -> None:
        self._ratios = Window()
        self._low = _TAIL
        self._high = 1.0 - _TAIL

    def interval(self) -> Interval | None:
        """None until LEAST outcomes are known."""
        if len(self._ratios) < LEAST:
            return None
        low, high = self._ratios.between(self._low, self._high)
        return Interval(low, self._ratios.quantile(0.5), high)

    def learn(self, ratio: float, promised: Interval | None) -> None:
        """What a prediction came to, and the interval that went with it."""
        ratio = min(_MOST_RATIO, max(_LEAST_RATIO, ratio))
        self._ratios.add(ratio)
        if promised is not None:
            below, above = ratio < promised.low, ratio > promised.high
            self._low = _clamped(self._low + _STEER * (_TAIL - below), _OUTER, _INNER)
            self._high = _clamped(self._high - _STEER * (_TAIL - above), 1.0 - _INNER, 1.0 - _OUTER)


class Coverage:
    """The share of late intervals that held."""

    def __init__(self, size: int = 1000) -> None:
        self._late: deque[bool] = deque(maxlen=size)
        self._num_held = 0

    def add(self, held: bool) -> float:
        """Take one; the share now."""
        if len(self._late) == self._late.maxlen:
            self._num_held -= self._late[0]
        self._late.append(held)
        self._num_held += held
        return self._num_held / len(self._late)


def _clamped(value: float, low: float, high: float) -> float:
    return min(high, max(low, value))
