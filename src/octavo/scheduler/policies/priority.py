"""More urgent requests first, whoever asks; those who wait become more urgent."""

from __future__ import annotations

from typing import ClassVar

from octavo.core.request import Request
from octavo.scheduler.policies.base import aged


class Priority:
    """The caller's `priority` with ageing; one account for all."""

    uses_priority: ClassVar[bool] = True

    def account(self, request: Request) -> str:
        """The same for everyone."""
        return ""

    def order(self, request: Request) -> tuple[float, ...]:
        """Aged arrival, arrival, choice index."""
        return (aged(request), request.arrived, request.index)
