"""Calls as bare JSON: one object or a list of them, maybe in a code fence. For models that have no format of their own."""

from __future__ import annotations

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Malformed, Rules, Steps, ToolFormat, Tools
from octavo.text.parsers.calls import json_call, json_calls
from octavo.text.parsers.scan import Scanner

_FENCES = ("```json", "```")


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    scanner.hold()
    fence = yield from scanner.at(_FENCES)
    found = yield from scanner.peek()
    if found not in ("{", "["):
        scanner.unread()
        yield from scanner.until((), scanner.content)
        return
    try:
        yield from json_calls(scanner, tools) if found == "[" else json_call(scanner, tools)
        if fence:
            yield from scanner.at(_FENCES[1:])
        scanner.release()
    except Malformed as flaw:
        yield from scanner.recover(flaw, ())
    yield from scanner.until((), scanner.content)


def _demand(demand: Demand) -> Rules:
    return lark.calls(demand, lark.json_object, before='"["', between='", "', after='"]"')


FORMAT = ToolFormat(parse=_parse, markers=(), claims=lambda template: False, demand=_demand)
