"""Finding flags: the highest rate at which the SLO still holds, one flag at a time. Pure over what evaluates.

A candidate is better when it keeps the SLO at a rate that is GAIN above the best one's so far, so most cost one
evaluation; only those that do are looked at closer. Ties stay with the defaults: fewer flags to explain.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from octavo.tools.tune.candidates import Candidate, Space
from octavo.tools.tune.slo import Score

GAIN = 1.03
LEAST, MOST = 1 / 64, 64.0
"""Factors on the rate of the traffic that are looked at."""
_CLOSE = 1.04
_ROUNDS = 3

Evaluate = Callable[[Candidate, float], Score]
"""Of a candidate, at so many times the traffic's rate."""


class Found(NamedTuple):
    """What a search came to."""

    best: Candidate
    capacity: dict[Candidate, float]
    """Times the traffic's rate at which the SLO holds, of those looked at closer; 0: not even at LEAST."""
    scores: dict[tuple[Candidate, float], Score]
    """All that was evaluated."""
    tried: tuple[Candidate, ...]


class Search:
    """One search; remembers what it has evaluated."""

    def __init__(self, evaluate: Evaluate, say: Callable[[str], None] = lambda _: None) -> None:
        self.scores: dict[tuple[Candidate, float], Score] = {}
        self.capacities: dict[Candidate, float] = {}
        self._evaluate = evaluate
        self._say = say

    def at(self, candidate: Candidate, factor: float) -> Score:
        """Its score at a factor."""
        key = (candidate, factor)
        if key not in self.scores:
            self.scores[key] = self._evaluate(candidate, factor)
        return self.scores[key]

    def capacity(self, candidate: Candidate, hint: float = 1.0) -> float:
        """The highest factor at which the SLO holds, within 4 %; 0 when it holds nowhere, MOST when everywhere."""
        if candidate not in self.capacities:
            self.capacities[candidate] = self._capacity(candidate, hint)
        return self.capacities[candidate]

    def _capacity(self, candidate: Candidate, hint: float) -> float:
        low = high = hint
        if self.at(candidate, hint).meets:
            while self.at(candidate, high).meets:
                low, high = high, min(MOST, high * 2)
                if low == MOST:
                    return MOST
        else:
            while not self.at(candidate, low).meets:
                low, high = max(LEAST, low / 2), low
                if high == LEAST:
                    return 0.0
        while high / low > _CLOSE:
            middle = math.sqrt(low * high)
            if self.at(candidate, middle).meets:
                low = middle
            else:
                high = middle
        return low

    def run(self, start: Candidate, space: Space) -> Found:
        """From the defaults, flag by flag, until none makes it better."""
        best, capacity = start, self.capacity(start)
        tried = [start]
        for _ in range(_ROUNDS):
            before = best
            for name, values in space.items():
                for value in values:
                    candidate = best.with_value(name, value)
                    if candidate in tried or not candidate.is_possible:
                        continue
                    tried.append(candidate)
                    least = max(LEAST, capacity * GAIN)
                    if least <= MOST and self.at(candidate, least).meets:
                        best, capacity = candidate, self.capacity(candidate, least)
                        self._say(f"{capacity:.2f} x the rate with {candidate.text(start)}")
            if best == before:
                break
        return Found(best, self.capacities, self.scores, tuple(tried))


def front(points: list[tuple[float, float]]) -> list[int]:
    """Indices of (goodput, cost) that no other beats in both, by rising goodput."""
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1]))
    kept: list[int] = []
    least = math.inf
    for index in order:
        if points[index][1] < least:
            least = points[index][1]
            kept.append(index)
    return kept[::-1]
