"""What may be spent in a day or a month: by a key, a tenant, a feature or all; and what happens at the end of it."""

from __future__ import annotations

import datetime
import re
from typing import Literal, get_args

import msgspec

from octavo.core.errors import ConfigError
from octavo.server.costs.tags import MINUTE_S, PAID, Tags

Scope = Literal["key", "tenant", "feature", "key+feature", "tenant+feature", "all"]
"""What a call must have to be paid from it. A feature is what the caller says, key and tenant are what its API key says."""
Measure = Literal["money", "tokens", "device_hours"]
Period = Literal["day", "month"]
Action = Literal["warn", "throttle", "refuse"]
"""warn: say so in the log, in a header and in metrics; throttle: one call at a time; refuse: none, and what runs is ended."""
SCOPES: tuple[Scope, ...] = get_args(Scope)
MEASURES: tuple[Measure, ...] = get_args(Measure)
PERIODS: tuple[Period, ...] = get_args(Period)
ACTIONS: tuple[Action, ...] = get_args(Action)

MAX_BUDGETS = 10_000
MAX_AMOUNT = 1e15
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One, as kept. Periods begin at midnight UTC.

    Raises:
        ConfigError: a name or an amount out of bounds.
    """

    name: str
    scope: Scope
    value: str
    """Whose: a key's id (of rotated keys the first's), a tenant, a feature; of two the feature last, behind a space, which no
    name has; empty for all."""
    measure: Measure
    amount: float
    """In money of --device-price's currency, tokens of prompts and outputs, or device-hours."""
    period: Period = "month"
    action: Action = "refuse"
    created: int = 0
    """Unix time."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"the budget's name is {self.name[:80]!r}; expected 1 to 64 letters, digits, dots, dashes, "
                "underscores, colons and slashes.",
                code="E-COST-02",
            )
        if not 0 < self.amount <= MAX_AMOUNT:
            raise ConfigError(
                f"the budget's amount is {self.amount}; expected a number above 0, at most {MAX_AMOUNT:g}.",
                code="E-COST-02",
            )

    @property
    def whose(self) -> dict[str, str]:
        """What a call's tags must be, by their names; nothing for all."""
        if self.scope == "all":
            return {}
        names = self.scope.split("+")
        return dict(zip(names, self.value.rsplit(" ", len(names) - 1), strict=True))

    @property
    def whose_text(self) -> str:
        """The same for people."""
        return " and ".join(f"{name} {value!r}" for name, value in self.whose.items()) or "all"

    def matches(self, tags: Tags) -> bool:
        """Whether what has these tags is paid from it."""
        return all(getattr(tags, name) == value for name, value in self.whose.items())

    def measured(self, item: str) -> bool:
        """Whether an item of the ledger counts."""
        if self.measure == "tokens":
            return item in ("tokens:prompt", "tokens:output")
        return item in PAID

    def started(self, now: float) -> float:
        """Unix time at which the period of `now` began."""
        at = datetime.datetime.fromtimestamp(now, datetime.UTC)
        day = at.day if self.period == "day" else 1
        return at.replace(day=day, hour=0, minute=0, second=0, microsecond=0).timestamp()

    def ends(self, now: float) -> float:
        """Unix time at which it is over."""
        start = self.started(now)
        if self.period == "day":
            return start + 24 * 60 * MINUTE_S
        return self.started(start + 32 * 24 * 60 * MINUTE_S)
