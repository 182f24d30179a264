"""Bytes to a checked body. Top level first, as raw slices, so that every complaint can name its field.

Cheap before costly: size of a field before its decoding, names before values. Raises `RequestError` with `param`.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw

from octavo.core.errors import RequestError, did_you_mean
from octavo.server.caps import has_any, most_numbers
from octavo.server.limits import BIG_FIELD_BYTES, FIELD_BYTES, MAX_DEPTHS, check_depth
from octavo.server.unsupported import NEUTRAL, RENAMED

T = TypeVar("T", bound=msgspec.Struct)

_top_level = msgspec.json.Decoder(dict[str, Raw])
_NUMBERS = re.compile(rb"\s*\[[\s\[]*[-0-9]")
_MAX_SEARCH_BYTES = 64 << 10
_MAX_NEUTRAL_BYTES = 64
_MAX_SHOWN_CHARS = 40
_MAX_FIELDS = 128


Refuse = Callable[[RequestError], None]
"""What to do about a field that is unknown or not honoured: raise, or note that it is ignored and return."""


def refuse_strictly(error: RequestError) -> None:
    """Raise it."""
    raise error


class Parser(Generic[T]):
    """Bytes to a `kind` of schema.py. Made once per kind; keeps no state between calls."""

    def __init__(self, kind: type[T]) -> None:
        fields = msgspec.structs.fields(kind)
        self._kind = kind
        self._neutral = NEUTRAL[kind.__name__]
        self._decoders = {field.name: msgspec.json.Decoder(field.type).decode for field in fields}
        infos = {field.name: msgspec.inspect.type_info(field.type) for field in fields}
        self._most_numbers = {name: most_numbers(info) for name, info in infos.items()}
        self._depths = {
            name: MAX_DEPTHS[name]
            for name, info in infos.items()
            if name in MAX_DEPTHS and has_any(info)
        }
        self._below = {field.name: _names_below(field.type) for field in fields}
        self._required = tuple(field.name for field in fields if field.required)

    def __call__(self, body: bytes, refuse: Refuse = refuse_strictly) -> T:
        """The body, checked. Fields that are unknown or unsupported go to `refuse`; if it returns they are left out.

        Raises:
            RequestError: bad JSON, an unknown, unsupported or missing field, a wrong type, a value out of range.
        """
        fields = _split(body)
        for name, raw in fields.items():
            self._check_name(name, raw, refuse)
        values: dict[str, Any] = {}
        for name, raw in fields.items():
            decode = self._decoders.get(name)
            if decode is not None:
                values[name] = _decode(name, raw, decode, self._below[name], refuse)
                if name in self._depths:
                    _check_nesting(name, raw, values[name], self._depths[name])
        for name in self._required:
            if name not in values:
                raise RequestError(f"{name} is missing; it is required.", param=name)
        return self._kind(**values)

    def _check_name(self, name: str, raw: Raw, refuse: Refuse) -> None:
        if name in self._decoders:
            most = BIG_FIELD_BYTES.get(name, FIELD_BYTES)
            size = len(memoryview(raw))
            if size > most:
                raise RequestError(f"{name} has {size} bytes; expected at most {most}.", param=name)
            _check_count(name, raw, self._most_numbers[name])
        elif name in self._neutral:
            if not _is_neutral(raw, self._neutral[name]):
                refuse(
                    RequestError(
                        f"{name} is not supported yet.",
                        param=name,
                        code="unsupported_field",
                        fix=f"Send {RENAMED[name]} instead."
                        if name in RENAMED
                        else "Leave it out.",
                    )
                )
        else:
            short = name[:_MAX_SHOWN_CHARS]
            refuse(
                RequestError(
                    f"unknown field {short!r}.{did_you_mean(short, self._decoders)}",
                    param=short,
                    code="unknown_field",
                )
            )


def _check_count(name: str, raw: Raw, most: int | None) -> None:
    """Refuse a long list of numbers, or of lists of numbers, before it is decoded: commas are counted a hundred times as fast."""
    if most is None or len(memoryview(raw)) <= most or not _NUMBERS.match(raw):
        return
    count = bytes(raw).count(b",") + 1
    if count > most:
        raise RequestError(
            f"{name} has about {count} entries; expected at most {most}.", param=name
        )


def _check_nesting(name: str, raw: Raw, value: object, most: int) -> None:
    """Refuse deep nesting. Few brackets cannot nest deeply: most fields need no walk."""
    text = bytes(raw)
    if text.count(b"[") + text.count(b"{") > most:
        check_depth(value, most, name)


def _split(body: bytes) -> dict[str, Raw]:
    if not body.strip():
        raise RequestError("the body is empty; expected a JSON object.", code="invalid_json")
    try:
        fields = _top_level.decode(body)
    except UnicodeDecodeError as error:
        raise RequestError("a field's name is not UTF-8.", code="invalid_json") from error
    except msgspec.ValidationError as error:
        raise RequestError("the body is not a JSON object.", code="invalid_json") from error
    except (msgspec.DecodeError, RecursionError) as error:
        name = _field_that_is_no_json_number(body)
        if name is not None:
            raise RequestError(
                f"{name} holds NaN or Infinity; expected finite numbers.", param=name
            ) from error
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


def _is_neutral(raw: Raw, neutral: tuple[Any, ...]) -> bool:
    if len(memoryview(raw)) > _MAX_NEUTRAL_BYTES:
        return False
    try:
        value = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return False
    # In Python false equals 0, in JSON it does not.
    alike = (each for each in neutral if isinstance(each, bool) is isinstance(value, bool))
    return value is None or value in alike


def _names_below(kind: object) -> tuple[str, ...]:
    """The field names of the objects that a field of this type may hold."""
    kinds = [one for one in (kind, *typing.get_args(kind)) if isinstance(one, type)]
    structs = [one for one in kinds if issubclass(one, msgspec.Struct)]
    return tuple(name for struct in structs for name in struct.__struct_fields__)


def _decode(
    name: str, raw: Raw, decode: Callable[[Raw], Any], below: Iterable[str], refuse: Refuse
) -> Any:
    try:
        return decode(raw)
    except msgspec.ValidationError as error:
        complaint = _complaint(name, raw, str(error), below)
        if complaint.code != "unknown_field":
            raise complaint from error
        refuse(complaint)
        rest = _without(raw, str(error))
        if rest is None:
            raise complaint from error
        return _decode(name, rest, decode, below, refuse)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{name} is not valid JSON: {error}.", param=name) from error
    except RecursionError as error:
        raise RequestError(f"{name} is nested too deeply.", param=name) from error


def _without(raw: Raw, reason: str) -> Raw | None:
    """The JSON without the unknown field that msgspec complained of; one field fewer each time.

    None where the complaint does not tell which: a caller may name a field so that it reads like another complaint.
    """
    value = msgspec.json.decode(raw)
    field = re.search(r"unknown field `(.*?)`", reason)
    _, _, path = reason.partition(" - at `$")
    holder = value
    try:
        for key in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            holder = holder[key[0]] if key[0] else holder[int(key[1])]
        if field is None:
            return None
        del holder[field[1]]
    except (LookupError, TypeError):
        return None
    return Raw(msgspec.json.encode(value))


def _complaint(name: str, raw: Raw, reason: str, below: Iterable[str]) -> RequestError:
    complaint, _, path = reason.partition(" - at `$")
    where = name + path.rstrip("`")
    unknown = re.search(r"unknown field `(.*)`", complaint)
    shown = bytes(memoryview(raw)[: _MAX_SHOWN_CHARS + 1]).decode(errors="replace")
    if len(shown) > _MAX_SHOWN_CHARS:
        shown = shown[:_MAX_SHOWN_CHARS] + "..."
    if unknown:
        return RequestError(
            f"unknown field {unknown[1]!r} in {where}.{did_you_mean(unknown[1], below)}",
            param=f"{where}.{unknown[1]}",
            code="unknown_field",
        )
    expected = complaint.replace("`", "").replace("Expected", "expected", 1)
    given = f"{name} is {shown}" if where == name else f"{where} in {name}={shown}"
    return RequestError(f"{given}; {expected}.", param=where)
