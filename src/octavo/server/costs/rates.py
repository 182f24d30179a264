"""What a million tokens cost now, prefill and decode apart: from the counters, over the last minutes."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from octavo.meter.metrics import Metrics

WINDOW_S = 300.0
"""Long enough for a number that can be read, short enough to be now."""


class _Point(NamedTuple):
    at: float
    seconds: tuple[float, float]
    """Of requests: prefill, decode."""
    tokens: tuple[float, float]


class Rates:
    """Owner: the cost desk. Without a price nothing is said."""

    def __init__(self, metrics: Metrics, price: float | None) -> None:
        self._price = price
        self._points: deque[_Point] = deque()

    def observe(self, metrics: Metrics, now: float) -> None:
        """Look at the counters; bring the gauges up to date. A kind of which nothing was computed is not a number."""
        if self._price is None:
            return
        kinds = ("prefill", "decode")
        name = "octavo:device_seconds_total"
        seconds = [metrics.value(name, (("account", "request"), ("kind", kind))) for kind in kinds]
        tokens = [metrics.value("octavo:charged_tokens_total", (("kind", kind),)) for kind in kinds]
        points = self._points
        points.append(_Point(now, (seconds[0], seconds[1]), (tokens[0], tokens[1])))
        while points[0].at < now - WINDOW_S:
            points.popleft()
        first, last = points[0], points[-1]
        for index, kind in enumerate(kinds):
            count = last.tokens[index] - first.tokens[index]
            spent = last.seconds[index] - first.seconds[index]
            cost = spent / 3600 * self._price / count * 1e6 if count > 0 else math.nan
            metrics.set("octavo:cost_per_million_tokens", cost, kind)
