"""What a scheduling policy decides: between whom the machine is shared, and who comes first within a share.

A policy keeps no state and looks at one request at a time. The accounts that it names are kept by
`scheduler/accounts.py`: whose has been served least, by weight and predicted device time, is served next.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from octavo.core.request import Request

AGEING_S = 10.0
"""Seconds of waiting that one class of priority is worth."""
MOST_CLASSES = 16
"""Classes beyond which another makes no difference, to either side of 0."""


class Policy(Protocol):
    """Pure: the same request gives the same answers, as long as it lives."""

    uses_priority: ClassVar[bool]
    """Whether a request's `priority` makes a difference."""

    def account(self, request: Request) -> str:
        """Who pays for the request."""
        ...

    def order(self, request: Request) -> tuple[float, ...]:
        """Sort key within an account; the smallest runs first."""
        ...


def aged(request: Request) -> float:
    """Arrival, put off by AGEING_S per class of priority.

    All requests age at one pace, so who comes first never changes while two wait, and this is one number that can be
    sorted by. A request is overtaken by those of a class more urgent by d that arrive up to d x AGEING_S after it, and by
    none that arrives more than 2 x MOST_CLASSES x AGEING_S (320 s) after it: nobody waits for ever.
    """
    return request.arrived + AGEING_S * min(max(request.priority, -MOST_CLASSES), MOST_CLASSES)
