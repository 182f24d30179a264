"""Calls behind `[TOOL_CALLS]`: a list of JSON objects, or a name and its arguments for each marker.

Newer models write `name[ARGS]{...}`, or `name[CALL_ID]id[ARGS]{...}`.
"""

from __future__ import annotations

import secrets
import string

from octavo.text.parsers import lark
from octavo.text.parsers.base import (
    Demand,
    Malformed,
    ReasoningFormat,
    Rules,
    Steps,
    ToolFormat,
    Tools,
)
from octavo.text.parsers.calls import json_calls
from octavo.text.parsers.scan import Scanner
from octavo.text.parsers.think import reasoning_between

_START, _ARGUMENTS, _ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_THINK, _END_THINK = "[THINK]", "[/THINK]"
_ID_CHARS = string.ascii_letters + string.digits


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    while True:
        marker = yield from scanner.until((_START,), scanner.content)
        if not marker:
            return
        scanner.hold(marker)
        try:
            if (yield from scanner.peek()) == "[":
                yield from json_calls(scanner)
            else:
                yield from _named(scanner)
            scanner.release()
        except Malformed as flaw:
            yield from scanner.recover(flaw, ())


def _named(scanner: Scanner) -> Steps[None]:
    name = yield from scanner.word()
    marker = yield from scanner.at((_ARGUMENTS, _ID))
    if marker == _ID:
        yield from scanner.word()
        if not (yield from scanner.at((_ARGUMENTS,))):
            raise Malformed(f"expected {_ARGUMENTS!r}")
    elif not marker and (yield from scanner.peek()) != "{":
        raise Malformed("expected arguments")
    scanner.begin_call(name)
    yield from scanner.value(scanner.arguments)
    scanner.end_call()


def _demand(demand: Demand) -> Rules:
    start = lark.lead(demand, _START)
    if demand.special_id(_ARGUMENTS) is None:
        return lark.calls(
            demand, lark.json_object, before=f'{start} "["', between='", "', after='"]"'
        )
    arguments = lark.mark(demand.special_id, _ARGUMENTS)
    return lark.calls(
        demand, lambda tool, rule: f"{start} {lark.quote(tool.name)} {arguments} {rule}"
    )


def _new_id() -> str:
    return "".join(secrets.choice(_ID_CHARS) for _ in range(9))


FORMAT = ToolFormat(
    parse=_parse,
    markers=(_START, _ARGUMENTS, _ID),
    claims=lambda template: _START in template,
    demand=_demand,
    trigger=_START,
    new_id=_new_id,
)
REASONING = ReasoningFormat(
    parse=reasoning_between((_THINK,), (_END_THINK,)),
    starts=(_THINK,),
    ends=(_END_THINK,),
    claims=lambda template: _THINK in template,
)
