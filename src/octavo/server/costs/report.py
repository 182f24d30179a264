"""From sums of the ledger to lines that people read: who used what, what it cost, and whether it all adds up."""

from __future__ import annotations

import datetime
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from octavo.core.errors import RequestError, did_you_mean
from octavo.server.costs.tags import ACCOUNTS, PAID, TOKEN_KINDS

if TYPE_CHECKING:
    from octavo.server.costs.store import LedgerStore, Sum

DIMS = ("tenant", "key", "feature", "model", "hour", "day")
MAX_LINES = 10_000
DEFAULT_SINCE_S = 86400.0
_SPAN = re.compile(r"(\d{1,9})([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


class UsageLine(msgspec.Struct, kw_only=True):
    """What one group used."""

    by: dict[str, str]
    """Column -> value, of what was grouped by."""
    requests: int = 0
    prompt_tokens: int = 0
    """As asked, those found in the prefix cache among them."""
    cached_tokens: int = 0
    computed_tokens: int = 0
    """Prompt tokens that prefill is the time of."""
    output_tokens: int = 0
    reasoning_tokens: int = 0
    lost_tokens: int = 0
    """Output of requests that were aborted or failed; decode is not their time."""
    prefill_s: float = 0.0
    """Device-seconds."""
    decode_s: float = 0.0
    aborted_s: float = 0.0
    """Spent on requests that their caller ended."""
    failed_s: float = 0.0
    """Spent on requests that failed here, and, like the next two, paid by the operator."""
    preemption_s: float = 0.0
    failover_s: float = 0.0
    cost: float | None = None
    """Of prefill, decode and aborted, each second at the price of the server that spent it; null without a price."""
    prefill_cost: float | None = None
    decode_cost: float | None = None


class Account(msgspec.Struct, kw_only=True):
    """One account of the whole."""

    name: str
    device_s: float
    share: float
    cost: float | None


class Usage(msgspec.Struct, kw_only=True):
    """The ledger over a span of time."""

    object: str = "usage"
    since: float
    """Unix time, the beginning of a minute."""
    until: float | None
    """Null: now."""
    currency_per_device_hour: float | None
    """--device-price of the latest server that has one."""
    data: list[UsageLine]
    """Most expensive first."""
    has_more: bool = False
    """Whether there are lines beyond the 10,000 that are told."""
    accounts: list[Account] | None = None
    """Of the operator: where all device time went."""
    covered_s: float | None = None
    """Of the operator: device-seconds in which servers ran. The accounts sum to it."""


def moment(text: str, now: float) -> float:
    """Unix time of a span before now (90s, 15m, 12h, 1d, 2w), or of an ISO date or time (UTC unless it says).

    Raises:
        RequestError: neither.
    """
    found = _SPAN.fullmatch(text)
    if found is not None:
        return now - int(found[1]) * _SECONDS[found[2]]
    try:
        at = datetime.datetime.fromisoformat(text)
        return (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)).timestamp()
    except (ValueError, OverflowError):
        raise RequestError(
            f"{text[:40]!r} is no time; expected a span such as 1d, or a date such as 2030-01-31.",
            param="since",
        ) from None


def dimensions(text: str) -> list[str]:
    """Names of columns, separated by commas.

    Raises:
        RequestError: an unknown one, or one twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in DIMS or names.count(name) > 1:
            raise RequestError(
                f"by is {text[:80]!r}; expected some of {','.join(DIMS)}.{did_you_mean(name, DIMS)}",
                param="by",
            )
    return names


def usage(
    store: LedgerStore,
    dims: Sequence[str],
    since: float,
    until: float | None = None,
    *,
    tenant: str | None = None,
    most: int | None = MAX_LINES,
) -> Usage:
    """The ledger from the minute of `since` on, `most` lines of it; of one tenant, or all of it with its accounts."""
    where = [] if tenant is None else [("tenant", tenant)]
    found = store.window(dims, since, until, where)
    price = found.price
    data = lines(found.lines, dims, has_price=price is not None)
    report = Usage(
        since=since // 60 * 60,
        until=None if until is None else until // 60 * 60,
        currency_per_device_hour=price,
        data=data[:most],
        has_more=most is not None and len(data) > most,
    )
    if tenant is None:
        report.covered_s = found.covered_s
        report.accounts = accounts(found.whole, has_price=price is not None)
    return report


def lines(found: Iterable[Sum], dims: Sequence[str], *, has_price: bool) -> list[UsageLine]:
    """One line per group in which anybody asked for anything, most expensive first."""
    groups: dict[tuple[str, ...], UsageLine] = {}
    costs: defaultdict[tuple[tuple[str, ...], str], float] = defaultdict(float)
    tokens = {f"tokens:{kind}": f"{kind}_tokens" for kind in TOKEN_KINDS}
    for one in found:
        field = f"{one.item}_s" if one.item in _LINE_ACCOUNTS else tokens.get(one.item)
        if one.item.startswith("requests:"):
            field = "requests"
        if field is None:
            continue
        by = dict(zip(dims, one.dims, strict=True))
        line = groups.setdefault(one.dims, UsageLine(by=by))
        is_time = field.endswith("_s")
        setattr(line, field, getattr(line, field) + (one.amount if is_time else round(one.amount)))
        if one.item in PAID:
            costs[one.dims, one.item] += one.priced / 3600
    for key, line in groups.items() if has_price else ():
        line.cost = sum(costs[key, item] for item in PAID)
        line.prefill_cost, line.decode_cost = costs[key, "prefill"], costs[key, "decode"]
    # What an engine's absence took is nobody's, and stands among the accounts.
    asked = [one for one in groups.values() if one.requests or one.prompt_tokens or _spent(one)]
    return sorted(asked, key=lambda one: (-_spent(one), *one.by.values()))


def _spent(line: UsageLine) -> float:
    return line.prefill_s + line.decode_s + line.aborted_s + line.failed_s


_LINE_ACCOUNTS = (*PAID, "failed", "preemption", "failover")


def accounts(found: Iterable[Sum], *, has_price: bool) -> list[Account]:
    """All accounts, also those with nothing in them."""
    by_item = {one.item: one for one in found}
    total = sum(one.amount for one in by_item.values() if one.item in ACCOUNTS) or 1.0
    rows = []
    for name in ACCOUNTS:
        one = by_item.get(name)
        seconds = 0.0 if one is None else one.amount
        cost = 0.0 if one is None else one.priced / 3600
        rows.append(
            Account(
                name=name, device_s=seconds, share=seconds / total, cost=cost if has_price else None
            )
        )
    return rows
