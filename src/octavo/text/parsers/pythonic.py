"""Calls as a Python list of calls: `[name(key="value", other=1), ...]`.

Arguments are literals, read by `literals.py`; nothing is ever evaluated. They become JSON once their call is whole.
"""

from __future__ import annotations

import json

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Malformed, Rules, Steps, Tool, ToolFormat, Tools
from octavo.text.parsers.literals import MAX_DEPTH, arguments_of
from octavo.text.parsers.scan import Scanner

_START, _END = "<|python_start|>", "<|python_end|>"
_MAX_CHARS = 1 << 16
_CLOSES = {"(": ")", "[": "]", "{": "}"}


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    scanner.hold()
    yield from scanner.at((_START,))
    if (yield from scanner.peek()) != "[":
        scanner.unread()
        yield from scanner.until((), scanner.content)
        return
    try:
        yield from _calls(scanner, tools)
        yield from scanner.at((_END,))
        scanner.release()
    except Malformed as flaw:
        scanner.give_back(str(flaw))
    yield from scanner.until((), scanner.content)


def _calls(scanner: Scanner, tools: Tools) -> Steps[None]:
    yield from scanner.expect("[")
    while True:
        name = yield from scanner.word()
        if name not in tools:
            raise Malformed(f"there is no tool {name[:40]!r}")
        source = yield from _group(scanner)
        arguments = arguments_of(source)
        scanner.begin_call(name)
        scanner.arguments(json.dumps(arguments, ensure_ascii=False))
        scanner.end_call()
        if (yield from scanner.peek()) == "]":
            yield from scanner.expect("]")
            return
        yield from scanner.expect(",")


def _group(scanner: Scanner) -> Steps[str]:
    """A pair of parentheses and what is in it."""
    if (yield from scanner.peek()) != "(":
        raise Malformed("expected '('")
    end = _GroupEnd()
    parts: list[str] = []
    yield from scanner.run(end.feed, parts.append, _MAX_CHARS)
    return "".join(parts)


class _GroupEnd:
    """Finds the parenthesis that closes the first one, in text that comes in parts."""

    def __init__(self) -> None:
        self.is_done = False
        self._open: list[str] = []
        self._quote = ""
        self._is_escaped = False

    def feed(self, text: str) -> tuple[int, bool]:
        """How many characters belong to the group, and whether that is its end. Raises Malformed."""
        for index, char in enumerate(text):
            if self._quote:
                if self._is_escaped:
                    self._is_escaped = False
                elif char == "\\":
                    self._is_escaped = True
                elif char == self._quote:
                    self._quote = ""
            elif char in "\"'":
                self._quote = char
            elif char in _CLOSES:
                self._open.append(_CLOSES[char])
                if len(self._open) > MAX_DEPTH:
                    raise Malformed("a call is nested too deeply")
            elif char in ")]}":
                if self._open.pop() != char:
                    raise Malformed(f"{char!r} closes what it did not open")
                if not self._open:
                    return index + 1, True
        return len(text), False


def _demand(demand: Demand) -> Rules:
    names = [f"call_{index}" for index in range(len(demand.tools))]
    rules = [f"{name}: {_call(tool)}" for name, tool in zip(names, demand.tools, strict=True)]
    rules.append(f"call: {' | '.join(names)}")
    more = f' (", " call){lark.MORE}' if demand.is_parallel else ""
    return Rules(f'"[" call{more} "]"', tuple(rules))


def _call(tool: Tool) -> str:
    """Required arguments in the order of the schema, then the others, each at most once."""
    properties = tool.parameters.get("properties")
    shapes = properties if isinstance(properties, dict) else {}
    asked = tool.parameters.get("required")
    required = [key for key in shapes if isinstance(asked, list) and key in asked]
    optional = [key for key in shapes if key not in required]
    head = lark.quote(f"{tool.name}(")
    first = ' ", " '.join(_argument(key, shapes[key], tool) for key in required)
    if required:
        rest = " ".join(f'(", " {_argument(key, shapes[key], tool)})?' for key in optional)
        return lark.join(head, first, rest, '")"')
    # Without a required one any of the optional may be the first.
    tails = [
        lark.join(
            _argument(key, shapes[key], tool),
            " ".join(f'(", " {_argument(k, shapes[k], tool)})?' for k in optional[place + 1 :]),
        )
        for place, key in enumerate(optional)
    ]
    inner = f"({' | '.join(tails)})?" if tails else ""
    return lark.join(head, inner, '")"')


def _argument(key: str, shape: object, tool: Tool) -> str:
    return f"{lark.quote(key + '=')} {_value(shape, tool)}"


def _value(shape: object, tool: Tool) -> str:
    """JSON, which is read as Python here, but for the words that Python spells otherwise."""
    given = shape if isinstance(shape, dict) else {}
    if given.get("type") == "boolean":
        return '("True" | "False")'
    if given.get("type") == "null":
        return '"None"'
    shared = {name: tool.parameters[name] for name in lark.DEFINITIONS if name in tool.parameters}
    return f"({lark.json_value({**shared, **given})})"


FORMAT = ToolFormat(
    parse=_parse, markers=(_START, _END), claims=lambda template: _START in template, demand=_demand
)
