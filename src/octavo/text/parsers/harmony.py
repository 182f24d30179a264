"""Messages in channels: reasoning in `analysis`, calls in `commentary` to a function, the answer in `final`.

The output goes on where the prompt ends, behind `<|start|>assistant`: a header up to `<|message|>`, then text up to
`<|end|>`, `<|call|>` or `<|return|>`; the last two end the output and are not shown.
"""

from __future__ import annotations

import contextlib
import re

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
from octavo.text.parsers.scan import MAX_NAME_CHARS, Scanner

_START, _CHANNEL, _CONSTRAIN = "<|start|>", "<|channel|>", "<|constrain|>"
_MESSAGE, _END, _CALL, _RETURN = "<|message|>", "<|end|>", "<|call|>", "<|return|>"
_MARKERS = (_START, _CHANNEL, _CONSTRAIN, _MESSAGE, _END, _CALL, _RETURN)
_ENDS = (_END, _CALL, _RETURN, _START)
_FUNCTIONS = "functions."
_RECIPIENT = re.compile(r"to=([^\s<]+)")
_MAX_HEADER_CHARS = 4 * MAX_NAME_CHARS


def _parse(scanner: Scanner, tools: Tools) -> Steps[None]:
    marker = ""
    while marker or (yield from scanner.rest()):
        marker = yield from _message(scanner, tools, marker)


def _message(scanner: Scanner, tools: Tools, marker: str) -> Steps[str]:
    """One message; `marker` and the returned one are the `<|start|>` in front of a header, if it is read already."""
    scanner.hold(marker)
    try:
        header = yield from _header(scanner)
    except Malformed as flaw:
        scanner.give_back(str(flaw))
        found = yield from scanner.until(_ENDS, scanner.content)
        return found if found == _START else ""
    scanner.release()
    scanner.skip_layout() if "analysis" not in header else None
    channel = header.partition(_CHANNEL)[2].strip().partition(" ")[0].partition("<")[0]
    recipient = _RECIPIENT.search(header)
    name = recipient[1] if recipient else ""
    if name.startswith(_FUNCTIONS) and tools:
        scanner.skip_layout()
        scanner.begin_call(name.removeprefix(_FUNCTIONS))
        with contextlib.suppress(Malformed):  # then the rest comes as it is written
            yield from scanner.value(scanner.arguments)
        found = yield from scanner.until(_ENDS, scanner.arguments)
        scanner.end_call()
        scanner.release()
    elif channel == "analysis":
        scanner.begin_reasoning()
        found = yield from scanner.until(_ENDS, scanner.reasoning, "none")
        scanner.end_reasoning(found)
    else:
        found = yield from scanner.until(_ENDS, scanner.content, "none")
    return found if found == _START else ""


def _header(scanner: Scanner) -> Steps[str]:
    parts: list[str] = []
    while True:
        marker = yield from scanner.until(_MARKERS, parts.append, "none")
        if marker == _MESSAGE and parts:
            return "".join(parts)
        if marker not in (_START, _CHANNEL, _CONSTRAIN) or sum(map(len, parts)) > _MAX_HEADER_CHARS:
            raise Malformed(f"expected {_MESSAGE!r}, found {marker or 'the end'!r}")
        parts.append(marker)


def _demand(demand: Demand) -> Rules:
    def one(name: str) -> str:
        return lark.mark(demand.special_id, name)

    thought = lark.until(demand.special_id, "thought", (_END,))
    made = lark.calls(
        demand._replace(is_parallel=False),  # a call ends the output: there is no second one
        lambda tool, rule: lark.join(
            one(_CHANNEL),
            lark.quote(f"commentary to={_FUNCTIONS}{tool.name} "),
            one(_CONSTRAIN),
            '"json"',
            one(_MESSAGE),
            rule,
            one(_CALL),
        ),
        before=f'({one(_CHANNEL)} "analysis" {one(_MESSAGE)} {thought.start} '
        f'{one(_START)} "assistant")?',
    )
    return Rules(made.start, (*thought.rules, *made.rules))


def _claims(template: str) -> bool:
    return _CHANNEL in template and _MESSAGE in template


TOOLS = ToolFormat(
    parse=_parse,
    markers=_MARKERS,
    claims=_claims,
    demand=_demand,
    is_whole=True,
)
REASONING = ReasoningFormat(
    parse=_parse, starts=(_CHANNEL,), ends=(_END,), claims=_claims, markers=_MARKERS, is_whole=True
)
