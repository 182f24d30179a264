"""First come, first served, whoever asks."""

from __future__ import annotations

from typing import ClassVar

from octavo.core.request import Request


class Fcfs:
    """Order of arrival; one account for all."""

    uses_priority: ClassVar[bool] = False

    def account(self, request: Request) -> str:
        """The same for everyone."""
        return ""

    def order(self, request: Request) -> tuple[float, ...]:
        """Arrival, then choice index."""
        return (request.arrived, request.index)
