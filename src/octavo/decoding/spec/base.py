"""What a speculative method is to the engine: a source of draft tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Proposer(Protocol):
    """Guesses next tokens; verification decides, so that a wrong guess never changes output."""

    def propose(self, row: int, num_tokens: int) -> tuple[int, ...]:
        """At most `num_tokens` guesses that follow the row's last known token."""

    def observe(self, row: int, token_ids: Sequence[int]) -> None:
        """Learn the row's tokens: all of them at its start, then those accepted in each step."""
