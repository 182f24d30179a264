"""Faults that a test orders with `--inject KIND[:WHOM][:COUNT]`: what was asked for, and whose turn it is.

They break an engine on purpose, so they are refused unless OCTAVO_TEST_BUILD is 1. What a kind does is in
`engine/inject.py` and `text/inject.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

from octavo.core import env
from octavo.core.errors import ConfigError, did_you_mean

Kind = Literal[
    "start", "nan", "swap", "kernel", "sampler", "grammar", "tokenizer", "hang", "exit", "slow"
]
KINDS: tuple[str, ...] = get_args(Kind)


class Injection(msgspec.Struct, frozen=True, kw_only=True):
    """One ordered fault."""

    kind: Kind
    token: int | None = None
    """Its victims are prompts with this token id."""
    nth: int | None = None
    """Its victim is the request that comes so many-th, from 1 on."""
    count: int | None = None
    """How often it strikes at most, in this process; None: whenever a victim is there."""
    milliseconds: float = 0.0
    """Of a slow step."""

    @property
    def takes_all(self) -> bool:
        """Whether everything is a victim, what is nobody's among it."""
        return self.token is None and self.nth is None


class Aim:
    """Says of each injection whether it strikes, and counts. Owner: whoever installs the injection."""

    def __init__(self, injection: Injection) -> None:
        self.injection = injection
        self._left = injection.count
        self._numbers: dict[str, int] = {}

    def is_victim(self, name: str, token_ids: Sequence[int]) -> bool:
        """Whether a request, by its name and prompt, is one it would strike; each name is counted when first seen."""
        number = self._numbers.setdefault(name, len(self._numbers) + 1)
        injection = self.injection
        if injection.token is not None:
            return injection.token in token_ids
        return injection.nth is None or injection.nth == number

    def strikes(self) -> bool:
        """Whether it does, now that a victim is there."""
        if self._left is None:
            return True
        self._left -= 1
        return self._left >= 0


def injections(orders: Sequence[str]) -> tuple[Injection, ...]:
    """What was ordered.

    Raises:
        ConfigError: it is no such order, or this is no test build.
    """
    if orders and not env.is_test_build():
        raise ConfigError(
            f"--inject {orders[0]} breaks requests on purpose; it is for tests of Octavo itself.",
            code="E-CFG-09",
            fix="Leave it out, or set OCTAVO_TEST_BUILD=1 where nobody depends on the answers.",
        )
    return tuple(map(_parse, orders))


def _parse(order: str) -> Injection:
    kind, *rest = order.split(":")
    if kind not in KINDS:
        raise _refusal(order, f"expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    try:
        milliseconds = float(rest.pop(0)) if kind == "slow" else 0.0
        whom = rest.pop(0) if rest else ""
        count = int(rest.pop(0)) if rest else None
        name, _, value = whom.partition("=")
        if rest or milliseconds < 0 or (count is not None and count < 1):
            raise ValueError
        if whom in ("", "*"):
            return msgspec.convert(
                {"kind": kind, "count": count, "milliseconds": milliseconds}, Injection
            )
        found = {"token": None, "nth": None}
        if name not in found:
            raise ValueError
        found[name] = int(value)  # type: ignore[assignment]
    except (ValueError, IndexError) as error:
        words = "expected KIND[:WHOM][:COUNT] with WHOM of *, token=ID or nth=N, and slow:MS[:WHOM][:COUNT]."
        raise _refusal(order, words) from error
    return msgspec.convert(
        {"kind": kind, "count": count, "milliseconds": milliseconds, **found}, Injection
    )


def _refusal(order: str, expected: str) -> ConfigError:
    return ConfigError(f"--inject is {order!r}; {expected}", code="E-CFG-01", param="inject")
