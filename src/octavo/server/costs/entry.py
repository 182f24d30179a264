"""One request in the ledger."""

from __future__ import annotations

from typing import NamedTuple

from octavo.core.charge import RequestCharge
from octavo.server.costs.tags import Account, Tags


class End(NamedTuple):
    """How a call's request ended."""

    reason: str
    """stop, length, abort or error."""
    wasted_as: Account | None = None
    """Where its prefill and decode go: aborted where its caller ended it, failed where we did."""
    num_cached: int = 0
    num_reasoning: int = 0


class Entry:
    """Owner: the book."""

    def __init__(self, request_id: str, tags: Tags, num_prompt: int, began: float) -> None:
        self.id = request_id
        self.tags = tags
        self.began = began
        """Unix time."""
        self.ended = began
        self.prompt = num_prompt
        self.output = 0
        self.computed = 0
        """Prompt tokens that went through the model for the first time."""
        self.prefill_s = self.decode_s = 0.0
        self.again_s = 0.0
        """Computed again, which costs its tenant nothing."""
        self.end: End | None = None
        self.closed_at = 0.0
        self.is_final = False
        """Whether its engine has said that it ended."""
        self.wasted_as: Account | None = None
        """Where what is still to be booked of its prefill and decode goes."""
        self.window = [0.0, 0.0, 0.0, 0.0]
        """Prefill, decode, preemption, failover of the engine's window under way."""
        self.minutes: dict[int, list[float]] = {}
        """Prefill and decode as booked, by minute."""

    @property
    def paid_s(self) -> float:
        """What its tenant pays for, unless it fails."""
        return self.prefill_s + self.decode_s

    @property
    def window_s(self) -> float:
        """All that the window has of it."""
        return sum(self.window)

    def take(self, one: RequestCharge) -> None:
        """The engine spent time on it."""
        for index, seconds in enumerate(
            (one.prefill_s, one.decode_s, one.preemption_s, one.failover_s)
        ):
            self.window[index] += seconds
        self.prefill_s += one.prefill_s
        self.decode_s += one.decode_s
        self.again_s += one.preemption_s + one.failover_s
        self.computed += one.prefill_tokens

    def give_back(self) -> None:
        """What was spent on it until now has to be spent again, and was for nothing."""
        self.again_s += self.paid_s
        self.prefill_s = self.decode_s = 0.0
        self.computed = 0
