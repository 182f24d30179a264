"""Whom a request's cost is booked to: tenant and key from its API key, the feature from a header, the model that answers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from octavo.core.errors import RequestError

MINUTE_S = 60
"""The ledger is kept by minutes."""
HEADER = "x-octavo-feature"
MAX_FEATURE_CHARS = 64
MAX_FEATURES = 256
"""Of one tenant on one server; what else it names is booked to OTHER."""
OTHER = "(other)"
_FEATURE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")

Account = Literal[
    "prefill",
    "decode",
    "aborted",
    "failed",
    "preemption",
    "failover",
    "canary",
    "startup",
    "overhead",
    "idle",
]
"""Where a device-second goes; docs/cost.md says which is what. They sum to wall time times devices."""
ACCOUNTS: tuple[Account, ...] = get_args(Account)
PAID: tuple[Account, ...] = ("prefill", "decode", "aborted")
"""What a tenant's cost is made of. The others are the operator's."""

TokenKind = Literal["prompt", "cached", "computed", "output", "lost", "reasoning"]
"""computed: prompt tokens that `prefill` is the time of; lost: output of aborted and failed requests, which `decode` is not."""
TOKEN_KINDS: tuple[TokenKind, ...] = get_args(TokenKind)


class Tags(NamedTuple):
    """Empty where nobody is meant."""

    tenant: str = ""
    key: str = ""
    """Id of the API key."""
    feature: str = ""
    model: str = ""


def read_feature(values: Sequence[str]) -> str:
    """The feature that the values of all `X-Octavo-Feature` headers of a call name; empty for none.

    Raises:
        RequestError: several, or no such name.
    """
    if not values:
        return ""
    if len(values) > 1 or not _FEATURE.fullmatch(values[0]):
        given = repr(values[0][:80]) if len(values) == 1 else f"given {len(values)} times"
        raise RequestError(
            f"the header X-Octavo-Feature is {given}; expected one name of 1 to {MAX_FEATURE_CHARS} letters, "
            "digits, dots, dashes, underscores, colons and slashes.",
            param="X-Octavo-Feature",
        )
    return values[0]


class Features:
    """The names in use, so that a caller who invents one per call fills no database. Owner: the server's event loop."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, set[str]] = {}

    def book_as(self, tenant: str, feature: str) -> str:
        """The name under which a tenant's feature is booked."""
        if not feature:
            return ""
        known = self._by_tenant.setdefault(tenant, set())
        if feature not in known:
            if len(known) >= MAX_FEATURES:
                return OTHER
            known.add(feature)
        return feature
