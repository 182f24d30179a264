"""Calls as bare `{"name": ..., "parameters": {...}}`, maybe behind a marker, several with semicolons between."""

from __future__ import annotations

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Malformed, Rules, Steps, ToolFormat, Tools
from octavo.text.parsers.calls import json_call
from octavo.text.parsers.scan import Scanner

_START = "<|python_tag|>"


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    scanner.hold()
    marker = yield from scanner.at((_START,))
    if not marker and (yield from scanner.peek()) != "{":
        scanner.unread()
        marker = yield from scanner.until((_START,), scanner.content)
        if not marker:
            return
        scanner.hold(marker)
    try:
        while True:
            yield from json_call(scanner, tools)
            if (yield from scanner.peek()) != ";":
                break
            yield from scanner.expect(";")
        scanner.release()
    except Malformed as flaw:
        yield from scanner.recover(flaw, ())
    yield from scanner.until((), scanner.content)


def _demand(demand: Demand) -> Rules:
    return lark.calls(
        demand,
        lambda tool, name: lark.json_object(tool, name, "parameters"),
        between='"; "',
    )


def _claims(template: str) -> bool:
    return "<|start_header_id|>" in template and '"parameters"' in template


FORMAT = ToolFormat(parse=_parse, markers=(_START,), claims=_claims, demand=_demand)
