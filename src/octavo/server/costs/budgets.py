"""Which budgets are used up, now: counted from the same charges as the ledger, as they are booked.

What was used before comes out of the database and is read again now and then, so that servers that share one share its
budgets. Between two reads a budget is exact for what this server spends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from octavo.core.errors import OverloadError
from octavo.core.log import get_logger
from octavo.server.costs.budget import Budget
from octavo.server.costs.tags import Tags

if TYPE_CHECKING:
    from octavo.server.costs.store import Sum

logger = get_logger(__name__)

NEAR_S = 2.0
"""A budget with less than so many device-seconds left is told of every step: more goes by between two tellings."""
_WARN_AT = 0.8


class BudgetError(OverloadError):
    """A budget is used up."""

    default_code = "budget_exceeded"


def total(budget: Budget, sums: Iterable[Sum]) -> float:
    """What sums of the ledger come to in the measure of a budget; money by what each server's hour cost."""
    counted = [one for one in sums if budget.measured(one.item)]
    if budget.measure == "tokens":
        return sum(one.amount for one in counted)
    is_money = budget.measure == "money"
    return sum(one.priced if is_money else one.amount for one in counted) / 3600


class Spender(Protocol):
    """A call that is paid from a budget."""

    def cut(self, error: BudgetError) -> None:
        """End it: there is nothing left."""
        ...


class State:
    """A budget and what is used of it. Owner: `Budgets`."""

    def __init__(self, budget: Budget, used: float, now: float) -> None:
        self.budget = budget
        self.used = used
        """In the budget's measure."""
        self.ends = budget.ends(now)
        self.spenders: set[Spender] = set()
        self.warned = 0
        """How many of the marks (80 %, 100 %) the log has."""

    @property
    def share(self) -> float:
        """Used of it; 1 is all."""
        return self.used / self.budget.amount

    @property
    def is_over(self) -> bool:
        """Whether it is used up."""
        return self.used >= self.budget.amount

    def error(self, now: float) -> BudgetError:
        """What is told to whom it refuses."""
        budget, wait_s = self.budget, max(1.0, self.ends - now)
        what = {"money": "of money", "tokens": "tokens", "device_hours": "device-hours"}
        text = (
            f"budget {budget.name!r} of {budget.whose_text} allows {budget.amount:g} {what[budget.measure]} a {budget.period}; "
            f"{self.used:.6g} are used."
        )
        if budget.action == "throttle":
            return BudgetError(
                f"{text} Until the {budget.period} is over, one call at a time is taken, and one runs.",
                retry_after_s=1.0,
                code="budget_throttled",
                fix="Wait for it to end.",
            )
        return BudgetError(
            text,
            retry_after_s=float(math.ceil(wait_s)),
            fix=f"A new {budget.period} begins in {wait_s / 3600:.1f} h (UTC); the operator can raise it with `octavo budget set`.",
        )


class Budgets:
    """Owner: the server's event loop. `price` is of a device-hour; budgets of money need one."""

    def __init__(self, price: float | None, clock: Callable[[], float] = time.time) -> None:
        self.states: dict[str, State] = {}
        self._price = price or 0.0
        self._clock = clock
        self._by_tags: dict[Tags, list[State]] = {}

    def install(self, found: Iterable[tuple[Budget, float]]) -> None:
        """What is kept now, with what each has used in its period."""
        now, before, self.states = self._clock(), self.states, {}
        for budget, used in found:
            state = State(budget, used, now)
            old = before.get(budget.name)
            if old is not None:
                state.spenders = old.spenders
                state.warned = old.warned if old.ends == state.ends else 0
            elif budget.measure == "money" and not self._price:
                logger.error(
                    "budget %s is of money, and without --device-price nothing costs any",
                    budget.name,
                )
            self.states[budget.name] = state
        self._by_tags.clear()
        for state in self.states.values():
            self._look(state)

    def roll(self) -> bool:
        """Begin the new period of budgets whose last is over, with nothing used; whether there was one.

        What was spent in it before this is in the database, and added when that is read.
        """
        now = self._clock()
        over = [state for state in self.states.values() if now >= state.ends]
        for state in over:
            state.used, state.warned, state.ends = 0.0, 0, state.budget.ends(now)
        return bool(over)

    @property
    def is_near(self) -> bool:
        """Whether one that has something running is about to be used up."""
        return any(
            state.spenders and not state.is_over and self._left_s(state) < NEAR_S
            for state in self.states.values()
        )

    def used_of(self, budget: Budget, item: str, amount: float) -> float:
        """An amount of the ledger in the measure of a budget."""
        if not budget.measured(item):
            return 0.0
        if budget.measure == "tokens":
            return amount
        return amount / 3600 * (self._price if budget.measure == "money" else 1.0)

    def charge(self, tags: Tags, seconds: float, tokens: float) -> None:
        """Something was booked."""
        for state in self.of(tags):
            item, amount = ("tokens:output", tokens) if tokens else ("decode", seconds)
            added = self.used_of(state.budget, item, amount)
            if added:
                state.used += added
                self._look(state)

    def of(self, tags: Tags) -> list[State]:
        """Those that pay for these tags."""
        if not self.states:
            return []
        found = self._by_tags.get(tags)
        if found is None:
            if len(self._by_tags) > 10_000:
                self._by_tags.clear()
            found = [state for state in self.states.values() if state.budget.matches(tags)]
            self._by_tags[tags] = found
        return found

    def has_feature(self, feature: str) -> bool:
        """Whether there is a budget of it."""
        return any(state.budget.whose.get("feature") == feature for state in self.states.values())

    def begin(self, tags: Tags, spender: Spender) -> list[str]:
        """A call begins; what its answer's header says of budgets that are used up.

        Raises:
            BudgetError: one has nothing left.
        """
        found = self.of(tags)
        over = [state for state in found if state.is_over]
        for state in over:
            action = state.budget.action
            if action == "refuse" or (action == "throttle" and state.spenders):
                raise state.error(self._clock())
        for state in found:
            state.spenders.add(spender)
        return [f"{one.budget.name}; used={one.share:.3f}; {one.budget.action}" for one in over]

    def end(self, spender: Spender) -> None:
        """The call has ended."""
        for state in self.states.values():
            state.spenders.discard(spender)

    def _left_s(self, state: State) -> float:
        """Device-seconds until it is used up; of tokens nothing has to be told, they are counted as they come."""
        left = state.budget.amount - state.used
        if state.budget.measure == "tokens":
            return math.inf
        each = self._price if state.budget.measure == "money" else 1.0
        return left * 3600 / each if each else math.inf

    def _look(self, state: State) -> None:
        """Say in the log what passes a mark, and end what has nothing left."""
        marks = (state.share >= _WARN_AT) + state.is_over
        if marks > state.warned:
            state.warned = marks
            logger.warning(
                "budget %s: %.6g of %.6g %s of this %s are used",
                state.budget.name,
                state.used,
                state.budget.amount,
                state.budget.measure,
                state.budget.period,
            )
        if state.is_over and state.budget.action == "refuse" and state.spenders:
            error = state.error(self._clock())
            for spender in list(state.spenders):
                spender.cut(error)
