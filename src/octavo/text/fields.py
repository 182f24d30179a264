"""Fields of JSON objects that no type describes, such as parts of messages: looked at one by one, refused by place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from octavo.core.errors import RequestError, did_you_mean


def string_in(given: Mapping[str, Any], name: str, where: str) -> str:
    """The string under `name`. Raises RequestError where there is none."""
    value = given.get(name)
    if not isinstance(value, str):
        raise RequestError(
            f"{where}.{name} is {type(value).__name__}; expected a string.", param=f"{where}.{name}"
        )
    return value


def check_names(given: Iterable[str], known: frozenset[str], where: str) -> None:
    """Refuse the first name that is not known. Raises RequestError with the nearest that is."""
    for name in given:
        if name not in known:
            short = name[:40]
            raise RequestError(
                f"unknown field {short!r} in {where}.{did_you_mean(short, known)}",
                param=f"{where}.{short}",
                code="unknown_field",
            )
