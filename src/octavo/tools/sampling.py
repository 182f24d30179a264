"""Sampling parameters typed by an operator: as flags of `generate` and `chat`, and after `/set`."""

from __future__ import annotations

import argparse

from octavo.core.errors import ConfigError, RequestError, did_you_mean
from octavo.core.params import SamplingParams
from octavo.tools.parser import Parser

NUMBERS: dict[str, type[int] | type[float]] = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "repetition_penalty": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "seed": int,
}
"""Names that can be set, under those of the API."""


def add_sampling_flags(parser: Parser) -> None:
    """Add a flag per name; `--seed` is the engine's flag and serves for both."""
    group = parser.add_argument_group("sampling", "Default: the model's own generation_config.")
    for name, kind in NUMBERS.items():
        if name != "seed":
            group.add_argument(
                "--" + name.replace("_", "-"), metavar="N" if kind is int else "X", dest=name
            )
    group.add_argument("--stop", nargs="+", metavar="TEXT", help="Texts that end the output.")


def given(args: argparse.Namespace) -> dict[str, object]:
    """The sampling parameters of a command line, checked, as fields of a request.

    Raises:
        ConfigError: a value out of range.
    """
    texts = {name: getattr(args, name, None) for name in NUMBERS}
    fields: dict[str, object] = {
        name: parse(name, str(text)) for name, text in texts.items() if text is not None
    }
    return {**fields, "stop": args.stop} if args.stop else fields


def parse(name: str, text: str) -> int | float:
    """The value of one parameter.

    Raises:
        ConfigError: an unknown name, not a number, or out of range.
    """
    check_name(name)
    kind = NUMBERS[name]
    try:
        value = kind(text)
    except ValueError as error:
        expected = "an integer" if kind is int else "a number"
        raise ConfigError(f"{name} is {text!r}; expected {expected}.", param=name) from error
    values: dict[str, int | float | None] = {"max_tokens": None, name: value}
    try:
        SamplingParams(**values)  # type: ignore[arg-type]  # checked by the constructor itself
    except RequestError as error:
        raise ConfigError(error.message, param=name) from error
    return value


def check_name(name: str) -> None:
    """Refuse what cannot be set.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in NUMBERS:
        raise ConfigError(
            f"no sampling parameter {name!r}; known: {', '.join(NUMBERS)}."
            + did_you_mean(name, NUMBERS),
            code="E-CFG-02",
        )
