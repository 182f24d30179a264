"""Finds stop strings in text that comes in parts.

Text goes through one Knuth-Morris-Pratt automaton per stop string, so each character is looked at once, and what
has to be held back (it may be the beginning of a stop string) is known exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class StopHit(NamedTuple):
    """A stop string was found. Positions count from the start of the text given to `feed`; start may be negative."""

    stop: str
    start: int
    end: int


class StopMatcher:
    """Which stop string is complete first. It depends on the text alone, not on how it was cut.

    Of several that are complete at the same character the longest wins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._automata = [_Automaton(stop) for stop in dict.fromkeys(stops)]

    @property
    def num_held(self) -> int:
        """How many of the last characters may be the beginning of a stop string."""
        return max((automaton.state for automaton in self._automata), default=0)

    def feed(self, text: str, *, is_armed: bool = True) -> StopHit | None:
        """Take the next part; while not armed, complete stop strings are passed over."""
        best: StopHit | None = None
        for automaton in self._automata:
            end = automaton.feed(text, is_armed)
            if end is None:
                continue
            hit = StopHit(automaton.stop, end - len(automaton.stop), end)
            if best is None or (hit.end, hit.start) < (best.end, best.start):
                best = hit
        return best


class _Automaton:
    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.state = 0
        self._fail = _failures(stop)

    def feed(self, text: str, is_armed: bool) -> int | None:
        stop, fail, state = self.stop, self._fail, self.state
        position, length = 0, len(text)
        while position < length:
            if state == 0:
                position = text.find(stop[0], position)
                if position < 0:
                    break
            char = text[position]
            while state and stop[state] != char:
                state = fail[state - 1]
            if stop[state] == char:
                state += 1
            position += 1
            if state == len(stop):
                if is_armed:
                    self.state = 0
                    return position
                state = fail[state - 1]
        self.state = state
        return None


def _failures(stop: str) -> list[int]:
    """For each prefix: the length of its longest proper border."""
    table = [0] * len(stop)
    state = 0
    for i in range(1, len(stop)):
        while state and stop[i] != stop[state]:
            state = table[state - 1]
        if stop[i] == stop[state]:
            state += 1
        table[i] = state
    return table
