"""Lower priority values first, then order of arrival; the least urgent gives way."""

from __future__ import annotations

from octavo.core.sequence import Sequence


class Priority:
    """The caller's `priority`, ties by arrival."""

    def order(self, sequence: Sequence) -> tuple[float, ...]:
        """Priority, arrival, choice index."""
        request = sequence.request
        return (request.priority, request.arrived, request.index)

    def victim(self, candidates: list[Sequence]) -> Sequence:
        """The least urgent, of those the last to arrive."""
        return max(candidates, key=self.order)
