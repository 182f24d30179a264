"""What of JSON Schema is enforced. Everything else is refused with its JSON pointer, so that nothing is ignored.

A keyword that only annotates is let through. Semantics are those of draft 2020-12, with the older spellings
(`definitions`, a list under `items`, true under `exclusiveMinimum`). Knows JSON; does not know grammars.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from octavo.core.errors import did_you_mean
from octavo.decoding.grammar.base import GrammarError

MAX_DEPTH = 128
"""Levels of JSON; a level of schema takes two."""
MAX_PROBES = 200
"""Subschemas tried to find the one that cannot be enforced."""
MAX_EXACT = 1 << 53
"""Integers beyond are not exact as floating point numbers, as which bounds are kept."""

FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
)  # fmt: skip
_NO_LEAP_SECOND = r":[0-5][0-9](\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})$"
_DRAFTS = ("draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12")
_ONE = ("items", "additionalItems", "additionalProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_NUMBERS = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength",
    "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
_PLAIN = ("$ref", "const", "enum", "type", "required", "pattern", "format", *_NUMBERS)
_ANNOTATIONS = (
    "$anchor", "$comment", "$id", "$schema", "id", "title", "description", "default", "deprecated",
    "readOnly", "writeOnly", "example", "examples", "contentMediaType", "contentEncoding",
    "externalDocs", "discriminator", "xml",
)  # fmt: skip
ENFORCED = frozenset((*_ONE, *_MANY, *_NAMED, *_PLAIN))
_KNOWN = ENFORCED.union(_ANNOTATIONS)
_OBJECTS = frozenset(("properties", "required", "minProperties", "maxProperties"))


def parse(text: str, param: str) -> Any:
    """JSON text to a schema.

    Raises:
        GrammarError: it is no JSON, repeats a name, or is nested too deeply.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the name {twice[:64]!r} twice in one object")
        return found

    def number(name: str) -> NoReturn:
        raise ValueError(f"{name}, which is no JSON")

    try:
        schema = json.loads(text, object_pairs_hook=unique, parse_constant=number)
    except RecursionError as error:
        raise _too_deep(param) from error
    except ValueError as error:
        raise GrammarError(f"{param} is not valid JSON: {error}.", param=param) from error
    if any(pointer.count("/") > MAX_DEPTH for pointer, _ in _levels(schema)):
        raise _too_deep(param)
    return schema


def check(schema: Any, param: str, pointer: str = "") -> None:
    """Refuse what would not be enforced.

    Raises:
        GrammarError: naming the keyword by its JSON pointer.
    """
    for at, part in subschemas(schema, pointer):
        if isinstance(part, bool):
            continue
        if not isinstance(part, dict):
            refuse(param, at, f"is {_shown(part)}; expected an object, true or false")
        for name, value in part.items():
            _check_keyword(param, f"{at}/{_escaped(name)}", name, value, part)


def subschemas(schema: Any, pointer: str = "") -> Iterator[tuple[str, Any]]:
    """Every schema in a schema, itself first, each with its JSON pointer. Includes definitions that nobody uses."""
    yield pointer, schema
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        below = f"{pointer}/{_escaped(name)}"
        if name in _NAMED and isinstance(value, dict):
            for key, child in value.items():
                yield from subschemas(child, f"{below}/{_escaped(key)}")
        elif (name in _MANY or name == "items") and isinstance(value, list):
            for index, child in enumerate(value):
                yield from subschemas(child, f"{below}/{index}")
        elif name in _ONE:
            yield from subschemas(value, below)


def closed(schema: Any) -> Any:
    """The schema with `additionalProperties: false` wherever it describes an object and does not say."""
    for _, part in subschemas(schema):
        if not isinstance(part, dict):
            continue
        is_object = part.get("type") == "object" or not _OBJECTS.isdisjoint(part)
        if is_object and "additionalProperties" not in part and "patternProperties" not in part:
            part["additionalProperties"] = False
    return schema


def prepared(schema: Any) -> Any:
    """The schema as grammars are made from it; changes the one given.

    Without `$schema`, so that no keyword is unknown because a dialect is older or newer; and times without leap seconds,
    which are valid at one minute of some years only (RFC 3339, 5.7).
    """
    for _, part in list(subschemas(schema)):
        if not isinstance(part, dict):
            continue
        part.pop("$schema", None)
        if part.get("format") in ("time", "date-time"):
            part["allOf"] = [*part.get("allOf", ()), {"pattern": _NO_LEAP_SECOND}]
    return schema


def locate(schema: Any, fails: Callable[[Any], bool]) -> str:
    """The JSON pointer of a smallest subschema that fails; the whole, "", when no part fails alone."""
    found = ""
    for count, (pointer, _) in enumerate(subschemas(schema)):
        if count >= MAX_PROBES:
            break
        if pointer.startswith(found) and pointer != found and fails(_extract(schema, pointer)):
            found = pointer
    return found


def refuse(param: str, pointer: str, problem: str, fix: str = "") -> NoReturn:
    """Raise the error for a place in the schema.

    Raises:
        GrammarError: always.
    """
    raise GrammarError(
        f"{param}{f' at {pointer!r}' if pointer else ''} {problem}.",
        param=param,
        code="unsupported_schema",
        fix=fix,
    )


def _check_keyword(param: str, at: str, name: str, value: Any, part: dict[str, Any]) -> None:
    if name not in _KNOWN and (not name.startswith("x-") or name == "x-guidance"):
        hint = did_you_mean(name, _KNOWN)
        refuse(param, at, f"is a keyword that is not enforced here.{hint}".rstrip("."), _LEAVE_OUT)
    if name in _NUMBERS and isinstance(value, int | float) and abs(value) > MAX_EXACT:
        refuse(param, at, f"is {_shown(value)}; expected a number that is exact in 53 bits")
    if name == "$schema" and not any(draft in str(value) for draft in _DRAFTS):
        refuse(param, at, f"is {_shown(value)}; expected a draft of json-schema.org from 4 on")
    if name == "format":
        _check_format(param, at, value, part.get("type", "string"))
    if name == "minProperties" and isinstance(value, int):
        required = part.get("required", ())
        named = len(required) if isinstance(required, list) else 0
        # Names beyond those in `properties` may be written twice, and would count once.
        if value > named + 1:
            refuse(param, at, f"is {value}; expected at most one more than `required` names")


def _check_format(param: str, at: str, value: Any, types: Any) -> None:
    if "string" not in types:
        refuse(param, at, f"is {_shown(value)}; formats are enforced on strings alone", _LEAVE_OUT)
    if value not in FORMATS:
        known = ", ".join(FORMATS)
        refuse(
            param, at, f"is {_shown(value)}; enforced are {known}", "Leave it out or use a pattern."
        )


_LEAVE_OUT = "Leave it out, and check the output yourself."


def _levels(value: Any) -> Iterator[tuple[str, Any]]:
    """Every container with a pointer of slashes alone, without recursion."""
    stack = [("", value)]
    while stack:
        pointer, node = stack.pop()
        yield pointer, node
        if len(pointer) > MAX_DEPTH:
            continue
        children = (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        )
        stack += [(pointer + "/", child) for child in children if isinstance(child, dict | list)]


def _extract(schema: Any, pointer: str) -> Any:
    """A schema that means the part of another, with all that the part may refer to."""
    return {"$defs": {"root": _moved(schema)}, "$ref": f"#/$defs/root{_uri(pointer)}"}


def _moved(node: Any) -> Any:
    if isinstance(node, list):
        return [_moved(child) for child in node]
    if not isinstance(node, dict):
        return node
    found = {name: _moved(child) for name, child in node.items()}
    reference = node.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        found["$ref"] = f"#/$defs/root{reference[1:]}"
    return found


def _uri(pointer: str) -> str:
    return pointer.replace("%", "%25").replace(" ", "%20").replace('"', "%22")


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 48 else f"{shown[:45]}..."


def _too_deep(param: str) -> GrammarError:
    return GrammarError(f"{param} is nested deeper than {MAX_DEPTH} levels.", param=param)
