"""Calls as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, Rules, Steps, ToolFormat, Tools
from octavo.text.parsers.calls import tagged_calls
from octavo.text.parsers.scan import Scanner

_START, _END = "<tool_call>", "</tool_call>"


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    yield from tagged_calls(scanner, (_START,), (_END,))


def _demand(demand: Demand) -> Rules:
    start, end = lark.lead(demand, _START), lark.mark(demand.special_id, _END)
    return lark.calls(
        demand,
        lambda tool, name: f'{start} "\\n" {lark.json_object(tool, name)} "\\n" {end}',
        between='"\\n"',
    )


def _claims(template: str) -> bool:
    return _START in template and "arguments" in template and "<function=" not in template


FORMAT = ToolFormat(
    parse=_parse, markers=(_START, _END), claims=_claims, demand=_demand, trigger=_START
)
