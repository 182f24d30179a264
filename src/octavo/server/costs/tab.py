"""What one call spends: from the edge of the call, through its requests, to their ends. Calls that generate nothing have
nothing on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from octavo.core.request import Request
from octavo.server.costs.budgets import BudgetError
from octavo.server.costs.entry import End, Entry
from octavo.server.costs.tags import Account, Tags

if TYPE_CHECKING:
    from octavo.server.costs.desk import CostDesk

_CALLERS = ("disconnect", "deadline", "api", "budget")
"""Why a request ended early where that is its caller's doing."""


class Tab:
    """Owner: the endpoint of the call; `metered` and `pooled` write on it."""

    def __init__(self, desk: CostDesk, tags: Tags) -> None:
        self.tags = tags
        self.reasoning: Callable[[], int] | None = None
        """How many output tokens were reasoning, where the answer's reader knows."""
        self.over: BudgetError | None = None
        """Why the call is being ended."""
        self._desk = desk
        self._entries: dict[str, Entry] = {}
        self._ends: list[Callable[[], None]] = []
        self._notes: list[str] = []

    def begin(self, abort: Callable[[], None]) -> None:
        """The call is about to spend; `abort` ends what it has under way. `end` follows, unless this raises.

        Raises:
            BudgetError: a budget has nothing left for it.
        """
        try:
            self._notes = self._desk.budgets.begin(self.tags, self)
        except BudgetError:
            self._desk.count_refusal()
            raise
        self._ends.append(abort)
        self._desk.keep_pace()

    def open(self, request: Request) -> None:
        """One request is about to be handed to the engine. Choices share their prompt: the first has it."""
        prompt = request.num_prompt if request.index == 0 else 0
        self._entries[request.id] = self._desk.book.open(request.id, self.tags, prompt)

    def add_output(self, request_id: str, count: int) -> None:
        """Its caller gets so many tokens more.

        Raises:
            BudgetError: the budget they are paid from is used up.
        """
        entry = self._entries.get(request_id)
        if entry is not None and count:
            self._desk.book.add_output(entry, count)
        self.check()

    def check(self) -> None:
        """Raises BudgetError once what pays for the call is used up."""
        if self.over is not None:
            raise self.over

    def close(self, request: Request, reason: str, cause: str, num_cached: int) -> None:
        """A request has ended; `cause` is why, where it ended early."""
        entry = self._entries.pop(request.id, None)
        if entry is None:
            return
        wasted: Account | None = None
        if reason in ("abort", "error"):
            is_callers = cause in _CALLERS or self.over is not None
            wasted = "aborted" if is_callers else "failed"
        is_first, reasoning = request.index == 0, 0
        if is_first and self.reasoning is not None:
            reasoning, self.reasoning = self.reasoning(), None
        cached = num_cached if is_first else 0
        self._desk.book.close(entry, End(reason, wasted, cached, reasoning))

    def end(self) -> None:
        """The call spends no more."""
        self._ends.clear()
        self._desk.budgets.end(self)

    def cut(self, error: BudgetError) -> None:
        """End it: there is nothing left."""
        if self.over is None:
            self.over = error
            for end in list(self._ends):
                end()

    def headers(self) -> dict[str, str]:
        """What the answer says of budgets that are used up."""
        return {"x-octavo-budget": ", ".join(self._notes)} if self._notes else {}
