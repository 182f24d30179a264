"""Fair shares between tenants; within a tenant more urgent requests first, and those who wait become more urgent.

A tenant's priorities order its own requests alone: what a caller writes into a body gains nothing over others.
"""

from __future__ import annotations

from typing import ClassVar

from octavo.core.request import Request
from octavo.scheduler.policies.base import aged


class Fair:
    """An account per tenant, with the tenant's weight."""

    uses_priority: ClassVar[bool] = True

    def account(self, request: Request) -> str:
        """The tenant."""
        return request.tenant

    def order(self, request: Request) -> tuple[float, ...]:
        """Aged arrival, arrival, choice index."""
        return (aged(request), request.arrived, request.index)
