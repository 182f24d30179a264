"""Every bound on what a caller can send, read off the request types: one row per number, string, list and object.

The types are the source; a row without a bound is a bug that a test finds. Knows types, not requests.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from msgspec import inspect as types

from octavo.server.limits import BIG_FIELD_BYTES, FIELD_BYTES, MAX_DEPTHS


class Cap(NamedTuple):
    """One thing that a caller can make large."""

    path: str
    """Where it stands: `stop[]` is an entry of the list `stop`, `logit_bias{}` a value of that object."""
    kind: str
    """number, string, list, object or any."""
    low: float | None
    high: float | None
    """Largest value, or most characters, entries or levels; None: unbounded, which a test refuses."""

    @property
    def bound(self) -> str:
        """In words."""
        if self.high is None:
            return "UNBOUNDED"
        unit = {"string": " characters", "list": " entries", "object": " members", "any": " levels"}
        span = f"{_shown(self.low)} to {_shown(self.high)}" if self.low else _shown(self.high)
        if self.kind == "number":
            return f"{_shown(self.low)} to {_shown(self.high)}"
        return f"at most {span}{unit[self.kind]}" if not self.low else f"{span}{unit[self.kind]}"


def caps(kind: type[msgspec.Struct]) -> list[Cap]:
    """The bounds of a body, field by field, in its order."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return [
        cap
        for field in info.fields
        for cap in _caps(field.type, field.name, field.name, frozenset())
    ]


def most_bytes(field: str) -> int:
    """Most JSON bytes of a top-level field."""
    return BIG_FIELD_BYTES.get(field, FIELD_BYTES)


def _caps(node: types.Type, path: str, field: str, above: frozenset[type]) -> Iterator[Cap]:
    match node:
        case types.IntType() | types.FloatType():
            low = node.gt if node.ge is None else node.ge
            high = node.lt if node.le is None else node.le
            yield Cap(path, "number", low, None if low is None else high)
        case types.StrType() | types.BytesType():
            yield Cap(path, "string", node.min_length, node.max_length)
        case types.CollectionType():
            yield Cap(path, "list", node.min_length, node.max_length)
            yield from _caps(node.item_type, f"{path}[]", field, above)
        case types.DictType():
            yield Cap(path, "object", node.min_length, node.max_length)
            yield from _caps(node.key_type, f"{path}.keys", field, above)
            yield from _caps(node.value_type, f"{path}{{}}", field, above)
        case types.UnionType():
            for one in node.types:
                yield from _caps(one, path, field, above)
        case types.StructType() if node.cls not in above:
            for inner in node.fields:
                name = f"{path}.{inner.encode_name}"
                yield from _caps(inner.type, name, field, above | {node.cls})
        case types.StructType():
            yield Cap(path, "any", None, MAX_DEPTHS.get(field))  # a type within itself
        case types.AnyType() | types.RawType():
            yield Cap(path, "any", None, MAX_DEPTHS.get(field))
        case types.Metadata():
            yield from _caps(node.type, path, field, above)
        case types.TupleType():
            for index, one in enumerate(node.item_types):
                yield from _caps(one, f"{path}[{index}]", field, above)
        case _:  # null, true and false, and words from a list, have no size
            known = types.NoneType | types.BoolType | types.LiteralType | types.EnumType
            if not isinstance(node, known):
                yield Cap(path, "any", None, None)


def has_any(node: types.Type) -> bool:
    """Whether JSON of any shape fits somewhere inside."""
    return any(cap.kind == "any" for cap in _caps(node, "", "", frozenset()))


def most_numbers(node: types.Type) -> int | None:
    """Most entries, where this may be a list of numbers; None where it may not."""
    if isinstance(node, types.Metadata):
        return most_numbers(node.type)
    if isinstance(node, types.UnionType):
        return next((most for one in node.types if (most := most_numbers(one)) is not None), None)
    if isinstance(node, types.ListType) and isinstance(
        _plain(node.item_type), types.IntType | types.AnyType
    ):
        return node.max_length
    return None


def _plain(node: types.Type) -> types.Type:
    return node.type if isinstance(node, types.Metadata) else node


def _shown(number: float | None) -> str:
    if number is None:
        return "0"
    return f"{number:,}" if isinstance(number, int) else f"{number:g}"
