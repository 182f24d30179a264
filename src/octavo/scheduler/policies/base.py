"""What a scheduling policy decides: who comes first and who gives way."""

from __future__ import annotations

from typing import Protocol

from octavo.core.sequence import Sequence


class Policy(Protocol):
    """Pure: the same sequences give the same answers."""

    def order(self, sequence: Sequence) -> tuple[float, ...]:
        """Sort key; the smallest runs first. It may not change while the sequence lives."""
        ...

    def victim(self, candidates: list[Sequence]) -> Sequence:
        """Whom to preempt, of at least one candidate. Must never be the first in order while there are others."""
        ...
