"""What readers of a quantized checkpoint's description share: bounded lists of names, and how they refuse. No torch."""

from __future__ import annotations

import re
from typing import NoReturn

from octavo.core.errors import ModelError
from octavo.models.config import Config

MAX_IGNORED = 4096
MAX_PATTERN = 512


def ignored_names(section: Config, key: str) -> tuple[str, ...]:
    """Layers that are not quantized.

    Raises:
        ModelError: too many or too long, or patterns that are none.
    """
    names = section.strings(key) if section.has(key) else ()
    if len(names) > MAX_IGNORED or not all(0 < len(name) <= MAX_PATTERN for name in names):
        expected = f"at most {MAX_IGNORED} names of at most {MAX_PATTERN} characters"
        refuse_stored(section, key, expected)
    for name in names:
        if name.startswith("re:"):
            check_pattern(section, key, name.removeprefix("re:"))
    return names


def check_pattern(section: Config, key: str, pattern: str) -> None:
    """Check that `pattern` is a regular expression.

    Raises:
        ModelError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        expected = f"patterns that are regular expressions ({error} in {pattern!r})"
        refuse_stored(section, key, expected)


def refuse_stored(section: Config, key: str, expected: str) -> NoReturn:
    """Raise for the value of `key`."""
    given = repr(section.data.get(key))
    shown = given if len(given) <= 200 else f"{given[:200]}..."
    raise ModelError(
        f"{section.where}: {key} is {shown}; of quantized checkpoints, {expected} is read.",
        code="E-MODEL-04",
        fix="Use a checkpoint of one of the kinds in docs/quantization.md, or the unquantized one with --quantization.",
        param=key,
    )
