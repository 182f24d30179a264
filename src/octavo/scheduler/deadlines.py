"""When requests are worth nothing any more. Knows their ids alone, so that who has ended is not kept until it is due."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from octavo.core.sequence import Sequence

_MOST_ENDED = 64
"""Deadlines of ended requests that are kept beside as many as are open."""


class Deadlines:
    """Those of open requests, soonest first. Owner: the scheduler."""

    def __init__(self, by_id: Mapping[str, Sequence]) -> None:
        self._by_id = by_id
        self._heap: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, request_id: str) -> None:
        """A request that is open, and its deadline."""
        heapq.heappush(self._heap, (deadline, request_id))
        if len(self._heap) > 2 * len(self._by_id) + _MOST_ENDED:
            known = [(s.request.deadline, s.id) for s in self._by_id.values()]
            self._heap = [(due, name) for due, name in known if due is not None]
            heapq.heapify(self._heap)

    def passed(self, now: float) -> Iterator[Sequence]:
        """Take the open requests whose deadline has passed. O(1) when there are none."""
        while self._heap and self._heap[0][0] < now:
            deadline, request_id = heapq.heappop(self._heap)
            sequence = self._by_id.get(request_id)
            # A name may come again, and then with another deadline.
            if sequence is not None and sequence.request.deadline == deadline:
                yield sequence
