"""Grammars of tool calls, in the Lark dialect of llguidance: the pieces that the formats share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from octavo.text.parsers.base import Demand, Rules, Tool

TEXT = "/(?s:.*)/"
"""Any text. It never matches a special token."""


MORE = "{0,15}"
"""Calls behind the first: a model that cannot stop calling is stopped."""
DEFINITIONS = ("$defs", "definitions")
"""Where a schema keeps what its parts refer to."""


def quote(text: str) -> str:
    """A literal."""
    return json.dumps(text, ensure_ascii=False)


def mark(special_id: Callable[[str], int | None], marker: str) -> str:
    """A marker: the special token, where it is one, else its text."""
    found = special_id(marker)
    return quote(marker) if found is None else f"<[{found}]>"


def lead(demand: Demand, marker: str) -> str:
    """The marker that begins a call, or what stands for it."""
    return demand.lead or mark(demand.special_id, marker)


def schema(parameters: Mapping[str, Any]) -> str:
    """A JSON value that follows a schema; no arguments at all where the tool has no schema."""
    return json_value(
        parameters or {"type": "object", "properties": {}, "additionalProperties": False}
    )


def json_value(shape: Mapping[str, Any]) -> str:
    """A JSON value that follows a schema."""
    return f"%json {json.dumps(shape)}"


def calls(
    demand: Demand,
    one: Callable[[Tool, str], str],
    *,
    before: str = "",
    between: str = "",
    after: str = "",
) -> Rules:
    """One call or, where allowed, several. `one(tool, arguments)` is the expression of a call, with the name of the
    rule of its arguments; `before` and `after` stand around all of them.
    """
    names = [f"arguments_{index}" for index in range(len(demand.tools))]
    choices = [one(tool, name) for tool, name in zip(demand.tools, names, strict=True)]
    rules = [f"call: {' | '.join(f'({choice})' for choice in choices)}"]
    rules += [
        f"{name}: {schema(tool.parameters)}" for name, tool in zip(names, demand.tools, strict=True)
    ]
    # With a lead every call finds its own beginning; only within a list there is more than one behind it.
    has_more = demand.is_parallel and (not demand.lead or bool(before))
    more = f" ({join(between, 'call')}){MORE}" if has_more else ""
    return Rules(join(before, f"call{more}", after), tuple(rules))


def json_object(tool: Tool, arguments: str, key: str = "arguments") -> str:
    """`{"name": ..., "arguments": ...}`."""
    head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
    return f'{quote(head)} {arguments} "}}"'


def join(*parts: str) -> str:
    """Expressions in a row, the empty ones left out."""
    return " ".join(part for part in parts if part)


def until(special_id: Callable[[str], int | None], name: str, ends: Iterable[str]) -> Rules:
    """Any text up to and including the first of the ends."""
    choices: list[str] = []
    rules: list[str] = []
    for index, end in enumerate(ends):
        found = special_id(end)
        if found is None:
            rules.append(f"{name}_{index}[lazy]: {TEXT} {quote(end)}")
            choices.append(f"{name}_{index}")
        else:
            choices.append(f"{TEXT} <[{found}]>")
    return Rules(f"({' | '.join(choices)})", tuple(rules))
