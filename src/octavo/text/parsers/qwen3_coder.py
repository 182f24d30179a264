"""Calls as XML-like text: `<function=name><parameter=key>value</parameter></function>`.

What is written is no JSON: arguments are made from it, each value by the type that the tool's schema gives it. A value
that can only be a string streams; others wait for their end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Malformed, Rules, Steps, Tool, ToolFormat, Tools
from octavo.text.parsers.calls import close
from octavo.text.parsers.scan import MAX_NAME_CHARS, Scanner

_START, _END = "<tool_call>", "</tool_call>"
_FUNCTION, _END_FUNCTION = "<function=", "</function>"
_PARAMETER, _END_PARAMETER = "<parameter=", "</parameter>"
_WORDS = {"true": True, "false": False, "null": None, "none": None}
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": list,
    "object": dict,
}


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    while True:
        marker = yield from scanner.until((_START, _FUNCTION), scanner.content)
        if not marker:
            return
        scanner.hold(marker)
        try:
            if marker == _START and not (yield from scanner.at((_FUNCTION,))):
                raise Malformed(f"expected {_FUNCTION!r}")
            yield from _call(scanner, tools)
            if marker == _START:
                yield from close(scanner, (_END,))
            scanner.release()
        except Malformed as flaw:
            if scanner.is_in_call:
                scanner.end_call(str(flaw))
            scanner.give_back(str(flaw))
        scanner.skip_layout()


def _call(scanner: Scanner, tools: Tools) -> Steps[None]:
    name = yield from _name(scanner)
    tool = tools.get(name)
    properties = tool.parameters.get("properties") if tool else None
    shapes = properties if isinstance(properties, dict) else {}
    scanner.begin_call(name)
    scanner.arguments("{")
    separator = ""
    while (marker := (yield from scanner.at((_PARAMETER, _END_FUNCTION)))) == _PARAMETER:
        key = yield from _name(scanner)
        scanner.arguments(f"{separator}{_dumps(key)}: ")
        separator = ", "
        yield from _value(scanner, _kinds(shapes.get(key)))
    if not marker and not scanner.is_over:
        # What is there in place of a parameter is read as content, behind a call that is whole as far as it goes.
        scanner.arguments("}")
        raise Malformed(f"expected {_PARAMETER!r} or {_END_FUNCTION!r}")
    scanner.arguments("}")
    scanner.end_call("" if marker else f"{_END_FUNCTION!r} is missing")


def _name(scanner: Scanner) -> Steps[str]:
    parts: list[str] = []
    marker = yield from scanner.until((">", "<", "\n"), parts.append)
    name = "".join(parts).strip()
    if marker != ">" or not 0 < len(name) <= MAX_NAME_CHARS:
        raise Malformed("expected a name and '>'")
    return name


def _value(scanner: Scanner, kinds: set[str]) -> Steps[None]:
    if kinds <= {"string"}:
        scanner.arguments('"')
        marker = yield from scanner.until(
            (_END_PARAMETER,), lambda text: scanner.arguments(_dumps(text)[1:-1]), "line"
        )
        # Cut off in a string: what is there stays without its end, so that it cannot pass for the whole of it.
        scanner.arguments('"' if marker else "")
        if not marker:
            raise Malformed(f"{_END_PARAMETER!r} is missing")
        return
    parts: list[str] = []
    marker = yield from scanner.until((_END_PARAMETER,), parts.append, "line")
    scanner.arguments(_convert("".join(parts), kinds))
    if not marker:
        raise Malformed(f"{_END_PARAMETER!r} is missing")


def _kinds(shape: object) -> set[str]:
    """The JSON types that a schema allows; empty when it does not say."""
    if not isinstance(shape, dict):
        return set()
    given = shape.get("type")
    names = given if isinstance(given, list) else [given]
    found = {name for name in names if isinstance(name, str)}
    for name in ("anyOf", "oneOf"):
        branches = shape.get(name)
        for branch in branches if isinstance(branches, list) else ():
            own = branch.get("type") if isinstance(branch, dict) else None
            found |= {own} if isinstance(own, str) else set()
    if not found and isinstance(shape.get("enum"), list):
        found = {"string"} if all(isinstance(v, str) for v in shape["enum"]) else set(_KINDS)
    return found


def _convert(text: str, kinds: set[str]) -> str:
    """The value as JSON: as it is written where that is JSON of a type allowed, else as a string."""
    bare = text.strip()
    try:
        value: Any = json.loads(bare)
    except (ValueError, RecursionError):
        value = _WORDS.get(bare.lower(), bare)
        bare = _dumps(value)
    for kind in kinds - {"string"}:
        allowed = _KINDS.get(kind)
        is_bool_for_number = isinstance(value, bool) and kind != "boolean"
        if allowed and isinstance(value, allowed) and not is_bool_for_number:
            return bare
    return _dumps(text)


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _demand(demand: Demand) -> Rules:
    start, end = lark.lead(demand, _START), lark.mark(demand.special_id, _END)
    names: list[str] = []
    rules: list[str] = [f"free_value[lazy]: {lark.TEXT} {lark.quote(_END_PARAMETER)}"]
    for index, tool in enumerate(demand.tools):
        names.append(f"function_{index}")
        rules.append(f"function_{index}: {_function(tool, index, rules)}")
    rules.append(f'call: {start} "\\n" ({" | ".join(names)}) "\\n" {end}')
    has_more = demand.is_parallel and not demand.lead
    return Rules(f'call ("\\n" call){lark.MORE}' if has_more else "call", tuple(rules))


def _function(tool: Tool, index: int, rules: list[str]) -> str:
    parts = [lark.quote(f"{_FUNCTION}{tool.name}>\n")]
    close_tag = lark.quote(f"\n{_END_PARAMETER}")
    properties = tool.parameters.get("properties")
    required = tool.parameters.get("required")
    shapes = properties if isinstance(properties, dict) else {}
    for number, (key, shape) in enumerate(shapes.items()):
        rule = "free_value"
        if not _kinds(shape) <= {"string"} or (isinstance(shape, dict) and "enum" in shape):
            rule = f"value_{index}_{number}"
            rules.append(f"{rule}: ({_shape(shape, tool)}) {close_tag}")
        open_tag = lark.quote(f"{_PARAMETER}{key}>\n")
        part = f'{open_tag} {rule} "\\n"'
        is_required = isinstance(required, list) and key in required
        parts.append(part if is_required else f"({part})?")
    return " ".join([*parts, lark.quote(_END_FUNCTION)])


def _shape(shape: object, tool: Tool) -> str:
    given = shape if isinstance(shape, dict) else {}
    values = given.get("enum")
    if isinstance(values, list) and values and all(isinstance(v, str) and v for v in values):
        return " | ".join(lark.quote(value) for value in values)
    shared = {name: tool.parameters[name] for name in lark.DEFINITIONS if name in tool.parameters}
    return lark.json_value({**shared, **given})


FORMAT = ToolFormat(
    parse=_parse,
    markers=(_START, _END),
    claims=lambda template: _FUNCTION in template and _PARAMETER in template,
    demand=_demand,
    trigger=_START,
)
