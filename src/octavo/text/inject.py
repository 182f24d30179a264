"""Ordered faults of the tokenizer, for tests. Nothing of it is there unless one was ordered."""

from __future__ import annotations

from collections.abc import Iterable

from octavo.core.inject import Aim, Injection
from octavo.text.tokenizer import Tokenizer


class InjectedError(RuntimeError):
    """A fault that a test ordered."""


def install(tokenizer: Tokenizer, ordered: Iterable[Injection]) -> None:
    """Break the tokenizer as ordered: encoding a victim's text throws."""
    for injection in ordered:
        if injection.kind == "tokenizer":
            _in_encode(tokenizer, Aim(injection))


def _in_encode(tokenizer: Tokenizer, aim: Aim) -> None:
    encode = tokenizer.encode
    number = 0

    def encoding(text: str, *, add_special_tokens: bool = True) -> list[int]:
        nonlocal number
        number += 1
        ids = encode(text, add_special_tokens=add_special_tokens)
        if aim.is_victim(str(number), ids) and aim.strikes():
            raise InjectedError("injected into the tokenizer")
        return ids

    tokenizer.encode = encoding  # type: ignore[method-assign, assignment]
