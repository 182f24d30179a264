"""Flags of other systems that operators may type and that Octavo does not honour yet.

Each is refused by name, never ignored. A neutral value, one that asks for what happens anyway, is
accepted.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Literal, NamedTuple

from octavo.core.errors import ConfigError
from octavo.core.kvspec import BLOCK_SIZE

_DEST = "unsupported:"


class Row(NamedTuple):
    """One flag: its spellings, what it takes, which values are neutral, what to do instead."""

    names: tuple[str, ...]
    takes: Literal["switch", "value", "values"] = "value"
    neutral: tuple[str, ...] = ()
    fix: str = "Leave it out."
    verdict: str = "is not supported yet"


_ONE = ("1",)
_OWN_CODE = "No code from a model folder ever runs; leave it out."

ROWS: tuple[Row, ...] = (
    Row(("--tensor-parallel-size", "-tp"), neutral=_ONE, fix="Use 1."),
    Row(("--pipeline-parallel-size", "-pp"), neutral=_ONE, fix="Use 1."),
    Row(("--data-parallel-size", "-dp"), neutral=_ONE, fix="Use 1."),
    Row(("--enable-expert-parallel", "-ep"), "switch"),
    Row(("--api-server-count",), neutral=_ONE, fix="Use 1."),
    Row(("--distributed-executor-backend",)),
    Row(("--block-size",), neutral=(str(BLOCK_SIZE),), fix=f"Use {BLOCK_SIZE}."),
    Row(("--enable-lora",), "switch"),
    Row(("--lora-modules",), "values"),
    Row(("--max-loras",)),
    Row(("--max-lora-rank",)),
    Row(("--speculative-config",)),
    Row(
        ("--collect-detailed-traces",),
        fix="Leave it out: traces have the times of queue, prefill and decode without it.",
    ),
    Row(
        ("--disable-access-log-for-endpoints",),
        fix="Probes and /metrics are left out already as long as their answer is the same.",
    ),
    Row(("--allowed-media-domains",), "values"),
    Row(("--limit-mm-per-prompt",)),
    Row(("--kv-transfer-config",)),
    Row(("--kv-offloading-size",), neutral=("0",)),
    Row(("--swap-space",), neutral=("0",)),
    Row(("--cpu-offload-gb",), neutral=("0",)),
    Row(("--revision",), fix="Give the folder of that revision as the model."),
    Row(("--hf-overrides",), fix="Edit config.json in a copy of the model folder."),
    Row(("--tokenizer-mode",), neutral=("auto",), fix="Use auto."),
    Row(("--trust-remote-code",), "switch", fix=_OWN_CODE, verdict="is not supported"),
    Row(("--task",), neutral=("auto",), fix="Use --runner generate or --runner pooling."),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Let the parser know the flags, unseen in help; else their values pass for a model."""
    for row in ROWS:
        dest = _DEST + row.names[0]
        if row.takes == "switch":
            offs = [f"--no-{name[2:]}" for name in row.names if name.startswith("--")]
            _hidden(parser, row.names, dest, const="true")
            _hidden(parser, tuple(offs), dest, const="false")
        else:
            parser.add_argument(
                *row.names,
                dest=dest,
                nargs="+" if row.takes == "values" else None,
                default=argparse.SUPPRESS,
                help=argparse.SUPPRESS,
            )


def _hidden(
    parser: argparse.ArgumentParser, names: tuple[str, ...], dest: str, *, const: str
) -> None:
    parser.add_argument(
        *names,
        dest=dest,
        action="store_const",
        const=const,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def refuse_flags(args: argparse.Namespace) -> None:
    """Refuse what the command line asks for and we do not do.

    Raises:
        ConfigError: naming the flag.
    """
    for row in ROWS:
        if hasattr(args, _DEST + row.names[0]):
            _refuse(row, getattr(args, _DEST + row.names[0]))


def is_refused_key(key: str, values: Mapping[str, object]) -> bool:
    """Whether a config file's key (with underscores) is one of these, with a neutral value.

    Raises:
        ConfigError: naming the flag.
    """
    option = "--" + key.replace("_", "-")
    row = next((row for row in ROWS if option in row.names), None)
    if row is None:
        return False
    value = values[key]
    _refuse(row, str(value).lower() if isinstance(value, bool | None) else value)
    return True


def _refuse(row: Row, value: object) -> None:
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    if text in row.neutral or (row.takes == "switch" and text == "false"):
        return
    given = row.names[0] if row.takes == "switch" else f"{row.names[0]} {text}"
    raise ConfigError(f"{given} {row.verdict}.", code="E-FLAG-01", fix=row.fix)
