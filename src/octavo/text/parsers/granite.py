"""Calls as a marker and a list of `{"name": ..., "arguments": {...}}`; reasoning between two sentences."""

from __future__ import annotations

from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, ReasoningFormat, Rules, Steps, ToolFormat, Tools
from octavo.text.parsers.calls import tagged_calls
from octavo.text.parsers.scan import Scanner
from octavo.text.parsers.think import reasoning_between

_STARTS = ("<|tool_call|>", "<tool_call>", "<function_call>")
_THOUGHTS = ("Here is my thought process:", "Here's my thought process:")
_RESPONSES = ("Here is my response:", "Here's my response:")


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    yield from tagged_calls(scanner, _STARTS, (), is_list=True)


def _demand(demand: Demand) -> Rules:
    start = lark.lead(demand, _STARTS[0])
    return lark.calls(demand, lark.json_object, before=f'{start} "["', between='", "', after='"]"')


def _claims(template: str) -> bool:
    return _STARTS[0] in template and "start_of_role" in template


FORMAT = ToolFormat(
    parse=_parse, markers=_STARTS, claims=_claims, demand=_demand, trigger=_STARTS[0]
)
REASONING = ReasoningFormat(
    parse=reasoning_between(_THOUGHTS, _RESPONSES),
    starts=_THOUGHTS,
    ends=_RESPONSES,
    claims=lambda template: _THOUGHTS[0][:-1] in template,
)
