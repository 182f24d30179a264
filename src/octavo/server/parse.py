"""Bytes to a checked body. Top level first, as raw slices, so that every complaint can name its field.

Cheap before costly: size of a field before its decoding, names before values. Raises `RequestError` with `param`.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Hashable
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import Raw

from octavo.core.errors import RequestError, did_you_mean
from octavo.server.limits import BIG_FIELD_BYTES, FIELD_BYTES
from octavo.server.unsupported import NEUTRAL

T = TypeVar("T")

_top_level = msgspec.json.Decoder(dict[str, Raw])
_MAX_SEARCH_BYTES = 64 << 10
_MAX_NEUTRAL_BYTES = 64
_MAX_SHOWN_CHARS = 40
_MAX_FIELDS = 128


def parse(body: bytes, kind: type[T]) -> T:
    """The body as a `kind` of schema.py.

    Raises:
        RequestError: bad JSON, an unknown or unsupported field, a missing one, a wrong type, a value out of range.
    """
    fields = _split(body)
    decoders = _decoders(kind)
    _check_names(fields, decoders.keys(), kind.__name__)
    values: dict[str, Any] = {}
    for name, raw in fields.items():
        decode = decoders.get(name)
        if decode is not None:
            values[name] = _decode(name, raw, decode)
    missing = [name for name in _required(kind) if name not in values]
    if missing:
        raise RequestError(f"{missing[0]} is missing; it is required.", param=missing[0])
    return kind(**values)


def _split(body: bytes) -> dict[str, Raw]:
    try:
        fields = _top_level.decode(body)
    except msgspec.ValidationError as error:
        raise RequestError("the body is not a JSON object.", code="invalid_json") from error
    except (msgspec.DecodeError, RecursionError) as error:
        name = _field_that_is_no_json_number(body)
        if name is not None:
            raise RequestError(f"{name} holds NaN or Infinity; expected finite numbers.", param=name)
        raise RequestError(f"the body is not valid JSON: {error}.", code="invalid_json") from error
    if len(fields) > _MAX_FIELDS:
        raise RequestError(f"the body has {len(fields)} fields; expected at most {_MAX_FIELDS}.")
    return fields


def _field_that_is_no_json_number(body: bytes) -> str | None:
    """The field with a NaN or Infinity, if that is all that is wrong with the body."""
    if len(body) > _MAX_SEARCH_BYTES or (b"NaN" not in body and b"Infinity" not in body):
        return None
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    found = [name for name, value in parsed.items() if _has_non_finite(value)]
    return found[0] if found else None


def _has_non_finite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, dict):
        return any(_has_non_finite(child) for child in value.values())
    return isinstance(value, list) and any(_has_non_finite(child) for child in value)


def _check_names(fields: dict[str, Raw], known: Any, kind: str) -> None:
    neutral = NEUTRAL[kind]
    for name, raw in fields.items():
        if name in known:
            most = BIG_FIELD_BYTES.get(name, FIELD_BYTES)
            size = len(memoryview(raw))
            if size > most:
                raise RequestError(f"{name} has {size} bytes; expected at most {most}.", param=name)
        elif name in neutral:
            if not _is_neutral(raw, neutral[name]):
                raise RequestError(
                    f"{name} is not supported yet.",
                    param=name,
                    code="unsupported_field",
                    fix="Leave it out.",
                )
        else:
            raise RequestError(
                f"unknown field {name[:_MAX_SHOWN_CHARS]!r}.{did_you_mean(name[:64], known)}",
                param=name[:_MAX_SHOWN_CHARS],
                code="unknown_field",
            )


def _is_neutral(raw: Raw, neutral: tuple[Any, ...]) -> bool:
    if len(memoryview(raw)) > _MAX_NEUTRAL_BYTES:
        return False
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    return value is None or value in neutral


def _decode(name: str, raw: Raw, decode: Callable[[Raw], Any]) -> Any:
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        _refuse_value(name, raw, str(error))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{name} is not valid JSON: {error}.", param=name) from error
    except RecursionError as error:
        raise RequestError(f"{name} is nested too deeply.", param=name) from error


def _refuse_value(name: str, raw: Raw, reason: str) -> NoReturn:
    complaint, _, path = reason.partition(" - at `$")
    where = name + path.rstrip("`")
    unknown = re.search(r"unknown field `(.*)`", complaint)
    shown = bytes(memoryview(raw)[: _MAX_SHOWN_CHARS + 1]).decode(errors="replace")
    if len(shown) > _MAX_SHOWN_CHARS:
        shown = shown[:_MAX_SHOWN_CHARS] + "..."
    if unknown:
        raise RequestError(
            f"unknown field {unknown[1]!r} in {where}.",
            param=f"{where}.{unknown[1]}",
            code="unknown_field",
        )
    expected = complaint.replace("`", "").replace("Expected", "expected", 1)
    raise RequestError(f"{where} in {name}={shown}: {expected}.", param=where)


@functools.cache
def _decoders(kind: Hashable) -> dict[str, Callable[[Raw], Any]]:
    return {
        field.encode_name: msgspec.json.Decoder(field.type).decode
        for field in msgspec.structs.fields(kind)
    }


@functools.cache
def _required(kind: Hashable) -> tuple[str, ...]:
    return tuple(field.encode_name for field in msgspec.structs.fields(kind) if field.required)
