"""First come, first served; the last to come gives way."""

from __future__ import annotations

from octavo.core.sequence import Sequence


class Fcfs:
    """Order of arrival."""

    def order(self, sequence: Sequence) -> tuple[float, ...]:
        """Arrival, then choice index."""
        return (sequence.request.arrived, sequence.request.index)

    def victim(self, candidates: list[Sequence]) -> Sequence:
        """The last to arrive."""
        return max(candidates, key=self.order)
