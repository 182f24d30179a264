"""Config classes as command-line flags and YAML keys: `max_num_seqs` is `--max-num-seqs` and
`max_num_seqs:`.

Fields, help texts and ranges come from `core/config.py` alone. The command line wins over
`--config FILE.yaml`, which wins over the defaults. Every complaint names the flag, what was given
and what was expected.
"""

from __future__ import annotations

import argparse
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeVar

import msgspec

from octavo.core.config import EngineConfig, ServerConfig
from octavo.core.errors import ConfigError, did_you_mean
from octavo.tools import unsupported

T = TypeVar("T", bound=msgspec.Struct)

Kind = Literal["bool", "int", "float", "str", "strings"]

ALIASES: dict[str, tuple[str, ...]] = {
    "disable_access_log": ("--disable-uvicorn-access-log",),
    "quantization": ("-q",),
}
"""Other spellings that operators already know, beside the one made from the field's name."""

_FOR_TESTS = frozenset({"inject"})
"""Fields that are no setting: they have a group of their own in the help text."""

_SUFFIXES = {"k": 10**3, "m": 10**6, "g": 10**9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
"""`--max-model-len 32k` (decimal) and `--kv-cache-memory-bytes 4G` (binary), as in vLLM."""


class Flag(NamedTuple):
    """One field of a config class, as a flag."""

    field: str
    kind: Kind
    choices: tuple[str, ...]
    is_optional: bool
    default: object
    meta: msgspec.Meta

    @property
    def option(self) -> str:
        """Its spelling on the command line."""
        return "--" + self.field.replace("_", "-")


class Configs(NamedTuple):
    """What one command line and its config file say."""

    engine: EngineConfig
    server: ServerConfig


def flags_of(config: type[msgspec.Struct]) -> tuple[Flag, ...]:
    """The flags of a config class, in the order of its fields."""
    hints = typing.get_type_hints(config, include_extras=True)
    return tuple(
        _flag(field.name, hints[field.name], field.default)
        for field in msgspec.structs.fields(config)
    )


def _flag(name: str, hint: object, default: object) -> Flag:
    plain, is_optional, metas = _unwrap(hint)
    meta = msgspec.Meta(
        **{key: value for key in _META for one in metas if (value := getattr(one, key)) is not None}
    )
    if typing.get_origin(plain) is Literal:
        return Flag(name, "str", typing.get_args(plain), is_optional, default, meta)
    kinds: dict[object, Kind] = {
        bool: "bool",
        int: "int",
        float: "float",
        str: "str",
        tuple[str, ...]: "strings",
    }
    return Flag(name, kinds[plain], (), is_optional, default, meta)


_META = ("ge", "gt", "le", "lt", "description")


def _unwrap(hint: object) -> tuple[object, bool, list[msgspec.Meta]]:
    """The plain type within `Annotated` and `| None`, whether None was in it, and all that was said."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is Annotated:
        plain, is_optional, metas = _unwrap(args[0])
        return plain, is_optional, [*metas, *args[1:]]
    if types.NoneType in args:
        (inner,) = (arg for arg in args if arg is not types.NoneType)
        plain, _, metas = _unwrap(inner)
        return plain, True, metas
    return hint, False, []


def add_config_flags(parser: argparse.ArgumentParser, *configs: type[msgspec.Struct]) -> None:
    """Add MODEL, --config and one flag per field of the config classes."""
    parser.add_argument("model_positional", nargs="?", metavar="MODEL", help="The same as --model.")
    parser.add_argument(
        "--config", metavar="FILE.yaml", help="Read flags from a file; the command line wins."
    )
    for config in configs:
        group = parser.add_argument_group(config.__name__.removesuffix("Config").lower())
        tests = parser.add_argument_group("tests of octavo itself")
        for flag in flags_of(config):
            _add(tests if flag.field in _FOR_TESTS else group, flag)
    unsupported.add_arguments(parser)


def add_fields(
    group: argparse._ArgumentGroup, config: type[msgspec.Struct], fields: Sequence[str]
) -> None:
    """Add the flags of some fields of a config class; what was not given is no attribute of the result."""
    for flag in flags_of(config):
        if flag.field in fields:
            _add(group, flag)


def _add(group: argparse._ArgumentGroup, flag: Flag) -> None:
    shown = (flag.meta.description or "").replace("%", "%%")
    if flag.default not in (None, ()):
        value = str(flag.default).lower() if flag.kind == "bool" else flag.default
        shown += f" [{value}]"
    metavars = {"int": "N", "float": "X", "str": "TEXT", "strings": "TEXT"}
    for name in (flag.option, *ALIASES.get(flag.field, ())):
        text = shown if name == flag.option else argparse.SUPPRESS
        if flag.kind == "bool":
            group.add_argument(
                name,
                dest=flag.field,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
            continue
        group.add_argument(
            name,
            dest=flag.field,
            nargs="+" if flag.kind == "strings" else None,
            default=argparse.SUPPRESS,
            metavar="{" + ",".join(flag.choices) + "}" if flag.choices else metavars[flag.kind],
            help=text,
        )


def configs(args: argparse.Namespace) -> Configs:
    """The two config objects of a parsed command line.

    Raises:
        ConfigError: a bad value, an unknown key, an unreadable file, an unsupported option.
    """
    unsupported.refuse_flags(args)
    values = read_config_file(args.config) if args.config else {}
    given = {key: value for key, value in vars(args).items() if key in _known()}
    if args.model_positional is not None:
        if given.get("model", args.model_positional) != args.model_positional:
            raise ConfigError(
                f"two models: {args.model_positional!r} and --model {given['model']!r}.",
                code="E-FLAG-02",
                fix="Give one.",
            )
        given["model"] = args.model_positional
    values.update(given)
    return Configs(engine=build(EngineConfig, values), server=build(ServerConfig, values))


def _known() -> set[str]:
    return {flag.field for config in (EngineConfig, ServerConfig) for flag in flags_of(config)}


def read_config_file(path: str) -> dict[str, object]:
    """The keys (with underscores) and values of a YAML config file.

    Raises:
        ConfigError: unreadable, not a mapping, an unknown key, or one not supported yet.
    """
    # lazy: yaml is needed only with --config
    import yaml

    try:
        loaded = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"--config {path!r}: {reason}.", code="E-FILE-01") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, Mapping):
        kind = type(loaded).__name__
        raise ConfigError(f"--config {path!r} holds a {kind}; expected keys.", code="E-FILE-01")
    values = {str(key).replace("-", "_"): value for key, value in loaded.items()}
    known = _known()
    kept: dict[str, object] = {}
    for key, value in values.items():
        if key in known:
            kept[key] = value
        elif not unsupported.is_refused_key(key, values):
            raise ConfigError(
                f"--config {path!r}: unknown key {key!r}.{did_you_mean(key, known)}",
                code="E-CFG-02",
            )
    return kept


def build(config: type[T], values: Mapping[str, object]) -> T:
    """A config object from those of `values` that are its fields.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """
    checked: dict[str, Any] = {
        flag.field: _check(flag, values[flag.field])
        for flag in flags_of(config)
        if flag.field in values
    }
    return config(**checked)


def _check(flag: Flag, value: object) -> object:
    if value is None and flag.is_optional:
        return None
    if flag.kind == "bool":
        return value if isinstance(value, bool) else _refuse(flag, value)
    if flag.kind == "strings":
        texts = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text for text in texts):
            _refuse(flag, value)
        return tuple(texts)
    if flag.kind == "str":
        is_known = not flag.choices or value in flag.choices
        return value if isinstance(value, str) and value and is_known else _refuse(flag, value)
    return _number(flag, value)


def _number(flag: Flag, value: object) -> float:
    parsed = _parse(flag, value)
    meta = flag.meta
    inside = (
        (meta.ge is None or parsed >= meta.ge)
        and (meta.gt is None or parsed > meta.gt)
        and (meta.le is None or parsed <= meta.le)
        and (meta.lt is None or parsed < meta.lt)
    )
    return parsed if inside and math.isfinite(parsed) else _refuse(flag, value)


def _parse(flag: Flag, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        _refuse(flag, value)
    if flag.kind == "int" and isinstance(value, float):
        _refuse(flag, value)
    text = str(value)
    unit = _SUFFIXES.get(text[-1:], 1) if flag.kind == "int" else 1
    try:
        if flag.kind == "float":
            return float(text)
        return int(text) if unit == 1 else int(text[:-1]) * unit
    except ValueError:
        _refuse(flag, value)


def _refuse(flag: Flag, value: object) -> NoReturn:
    raise ConfigError(
        f"{flag.option} is {value!r}; expected {expected(flag)}.",
        code="E-CFG-01",
        param=flag.field,
        fix=f"Default: {flag.default}." if flag.default not in (None, ()) else "",
    )


def expected(flag: Flag) -> str:
    """What a flag's value may be, in words."""
    if flag.choices:
        return "one of " + ", ".join(flag.choices)
    words: dict[Kind, str] = {
        "bool": "true or false",
        "int": "an integer",
        "float": "a number",
        "str": "a text",
        "strings": "one text or a list of them",
    }
    meta = flag.meta
    bounds = [
        f"{sign} {bound:g}" if isinstance(bound, float) else f"{sign} {bound}"
        for sign, bound in ((">=", meta.ge), (">", meta.gt), ("<=", meta.le), ("<", meta.lt))
        if bound is not None
    ]
    return " ".join([words[flag.kind], " and ".join(bounds)]).strip()


def server_config(args: argparse.Namespace, *names: str) -> ServerConfig:
    """What `--config` and, over it, the flags of these names say of a server, to a verb that is none."""
    values = read_config_file(args.config) if args.config else {}
    given = {name: getattr(args, name) for name in names}
    return build(ServerConfig, values | {name: v for name, v in given.items() if v is not None})
