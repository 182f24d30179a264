"""An argument parser whose complaints are `ConfigError`s, with the nearest known flag."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import NoReturn

from octavo.core.errors import ConfigError, did_you_mean


class Parser(argparse.ArgumentParser):
    """`argparse` without abbreviations, without its own way of dying."""

    def __init__(self, *, prog: str, description: str) -> None:
        super().__init__(
            prog=prog, usage=f"{prog} [options]", description=description, allow_abbrev=False
        )

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse a whole command line.

        Raises:
            ConfigError: an unknown flag, a missing or malformed value.
        """
        args, unknown = self.parse_known_args(words)
        if not unknown:
            return args
        flag = next((word for word in unknown if word.startswith("-")), unknown[0])
        name = flag.partition("=")[0]
        kind = "flag" if flag.startswith("-") else "argument"
        raise ConfigError(
            f"unknown {kind} {name!r} of `{self.prog}`.{did_you_mean(name, self.options())}",
            code="E-CFG-02",
            fix=f"See `{self.prog} --help`.",
        )

    def options(self) -> list[str]:
        """Every flag that help shows, in all its spellings."""
        return [
            option
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for option in action.option_strings
        ]

    def error(self, message: str) -> NoReturn:
        """Called by argparse for what it cannot parse.

        Raises:
            ConfigError: always.
        """
        text = message.removeprefix("argument ")
        raise ConfigError(f"{text}.", code="E-CFG-01", fix=f"See `{self.prog} --help`.")


def number(low: float, high: float | None = None, *, whole: bool = False) -> Callable[[str], float]:
    """An argparse `type`: a number in [low, high]; argparse names the flag in the message."""

    def convert(text: str) -> float:
        span = f"from {low:g} to {high:g}" if high is not None else f"of at least {low:g}"
        kind = "an integer" if whole else "a number"
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= (high if high is not None else value):
            raise argparse.ArgumentTypeError(f"{text!r} given; expected {kind} {span}")
        return value

    return convert
