"""The grammar under which an output cannot but call a tool, or calls only as the tools' schemas say."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from octavo.core.structured import StructuredOutputs
from octavo.text.parsers import lark
from octavo.text.parsers.base import Demand, ReasoningFormat, Rules, ToolFormat
from octavo.text.parsers.output import Formats


class Budget(NamedTuple):
    """How many tokens of reasoning there may be, and the tokens that open and close it."""

    num_tokens: int
    start_id: int
    end_id: int

    def thought(self) -> Rules:
        """Reasoning up to and including its end, which is forced when the budget is spent."""
        rule = f"budget: <[^{self.end_id}]>{{0,{self.num_tokens}}} <[{self.end_id}]>"
        return Rules("budget", (rule,))


def within_budget(budget: Budget, *, is_open: bool) -> StructuredOutputs:
    """Any output whose reasoning stays within the budget."""
    thought = budget.thought()
    start = f"{thought.start} rest"
    if not is_open:
        first = budget.start_id
        start = f"(<[{first}]> {start}) | (<[^{first}]> rest)?"
    return StructuredOutputs(grammar=_grammar(Rules(start, (*thought.rules, "rest: <[*]>*"))))


def grammar_of(
    formats: Formats,
    demand: Demand,
    *,
    is_open: bool,
    is_free: bool = False,
    is_closed: bool = False,
    budget: Budget | None = None,
) -> str:
    """Lark text. Reasoning may come first: it must end where the prompt has opened it (`is_open`), and there is none
    where the prompt has closed it.

    With `is_free` the model may write text, and only its calls are bound; empty where the format has no trigger by
    which a call could be told in time.
    """
    assert formats.tools is not None, "a demand needs a format to be written in"
    trigger = formats.tools.trigger
    if is_free and not trigger:
        return ""
    body = _free(formats.tools, demand) if is_free else formats.tools.demand(demand)
    reasoning = formats.reasoning
    if reasoning is not None and not (reasoning.is_whole or formats.tools.is_whole or is_closed):
        body = _thoughtful(body, reasoning, demand.special_id, is_open, budget)
    return _grammar(body)


def after_reasoning(
    formats: Formats,
    shape: StructuredOutputs,
    special_id: Callable[[str], int | None],
    *,
    is_open: bool,
    budget: Budget | None = None,
) -> StructuredOutputs | None:
    """The same shape for what follows the reasoning; None where it cannot be said so."""
    reasoning = formats.reasoning
    if reasoning is None or reasoning.is_whole or _HOW & set(_given(shape)):
        return None
    if shape.json is not None:
        start = f"%json {shape.json}"
    elif shape.json_object:
        start = '%json {"type": "object"}'
    elif shape.choice is not None:
        start = " | ".join(lark.quote(choice) for choice in shape.choice)
    else:
        return None
    body = Rules("answer", (f"answer: {start}",))
    made = _thoughtful(body, reasoning, special_id, is_open, budget)
    return StructuredOutputs(grammar=_grammar(made))


_HOW = {"disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"}
"""How JSON is written, which a grammar cannot say of what is embedded in it."""


def _given(shape: StructuredOutputs) -> list[str]:
    return [name for name in _HOW if getattr(shape, name)]


def _grammar(body: Rules) -> str:
    # Beginning so, it cannot be taken for EBNF, whatever the names and schemas of tools hold.
    return "\n".join([f"start: {body.start}", *body.rules]) + "\n"


def _thoughtful(
    body: Rules,
    reasoning: ReasoningFormat,
    special_id: Callable[[str], int | None],
    is_open: bool,
    budget: Budget | None,
) -> Rules:
    thought = budget.thought() if budget else lark.until(special_id, "thought", reasoning.ends)
    space = r"/[ \t\r\n]{0,8}/"
    if is_open:
        return Rules(f"{thought.start} {space} ({body.start})", (*thought.rules, *body.rules))
    starts = " | ".join(lark.mark(special_id, start) for start in reasoning.starts)
    start = f"(({starts}) {thought.start} {space})? ({body.start})"
    return Rules(start, (*thought.rules, *body.rules))


def _free(tools: ToolFormat, demand: Demand) -> Rules:
    """Text in which every trigger begins a call."""
    found = demand.special_id(tools.trigger)
    if found is not None:
        body = tools.demand(demand._replace(lead=f"{lark.TEXT} <[{found}]>"))
        return Rules(f"({body.start})* {lark.TEXT}", body.rules)
    body = tools.demand(demand._replace(lead="lead"))
    lead = f"lead[lazy]: {lark.TEXT} {lark.quote(tools.trigger)}"
    return Rules(f"({body.start})* tail", (*body.rules, lead, f"tail: {lark.TEXT}"))
