"""Every row of the parser registries: it reads what its family writes, and what its own grammar forces."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from octavo.text.parsers.base import Demand, ReasoningFormat, Tool, ToolFormat
from octavo.text.parsers.demand import Budget, grammar_of, within_budget
from octavo.text.parsers.output import Formats
from octavo.text.parsers.registry import REASONING, TOOL_CALLS
from transcripts import TRANSCRIPTS, fold, parse, parser

SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "is_now": {"type": "boolean"},
        "to": {"type": "string"},
    },
    "required": ["unit", "days", "to"],
    "additionalProperties": False,
}
TOOLS = (Tool("get_weather", SHAPE), Tool("now", {}))
BYTES = LLTokenizer("byte")
ENDS = [b"\n</parameter>\n", b"<|end|>", b'"']
"""Ends of free text, which a random walk would not come upon."""
tools_rows = pytest.mark.parametrize("name", sorted(TOOL_CALLS))
reasoning_rows = pytest.mark.parametrize("name", sorted(REASONING))


def generate(grammar: str, seed: int, most: int = 1500) -> str:
    """A random output that the grammar allows, with a liking for short ones."""
    rng = random.Random(seed)
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    out = bytearray()
    for _ in range(most):
        if matcher.is_accepting() and rng.random() < 0.5:
            break
        end = rng.choice(ENDS)
        if matcher.validate_tokens(list(end)) == len(end) and rng.random() < 0.2:
            assert matcher.consume_tokens(list(end))
            out += end
            continue
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(256) if mask[i // 8] >> (i % 8) & 1]
        if not allowed:
            break
        plain = [i for i in allowed if 32 <= i < 127 or i == 10] or allowed
        likely = [i for i in plain if chr(i) in '"}])<\n/'] if rng.random() < 0.6 else plain
        byte = rng.choice(likely or plain)
        assert matcher.consume_token(byte), matcher.get_error()
        out.append(byte)
    assert matcher.is_accepting(), (seed, bytes(out[:300]))
    return out.decode()


def demand(*, is_parallel: bool = True, tools: tuple[Tool, ...] = TOOLS) -> Demand:
    return Demand(tools, is_parallel, lambda marker: None)


@tools_rows
def test_a_row_is_a_format(name: str) -> None:
    made = TOOL_CALLS.load(name)
    assert isinstance(made, ToolFormat)
    assert not made.claims("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert made.trigger == "" or made.trigger in made.markers


@reasoning_rows
def test_a_reasoning_row_is_a_format(name: str) -> None:
    made = REASONING.load(name)
    assert isinstance(made, ReasoningFormat)
    assert made.starts and made.ends
    assert not made.claims("{% for m in messages %}{{ m.content }}{% endfor %}")
    known = {id(REASONING.load(t.thinks)) for t in TRANSCRIPTS if t.thinks is not None}
    assert id(made) in known, "tests/transcripts.py has no output of this format"


@tools_rows
def test_a_row_has_transcripts_with_and_without_calls(name: str) -> None:
    formats = {t.tools: TOOL_CALLS.load(t.tools) for t in TRANSCRIPTS}
    mine = [t for t in TRANSCRIPTS if formats[t.tools] is TOOL_CALLS.load(name)]
    assert any(t.calls for t in mine)
    for transcript in mine:
        answer = parse(parser(name, transcript.thinks), list(transcript.text))
        assert answer.calls == transcript.calls


@tools_rows
@pytest.mark.parametrize("is_parallel", [True, False])
def test_what_the_grammar_forces_is_parsed_as_calls(name: str, is_parallel: bool) -> None:
    formats = Formats(tools=TOOL_CALLS.load(name))
    grammar = grammar_of(formats, demand(is_parallel=is_parallel), is_open=False)
    names = set()
    for seed in range(12):
        text = generate(grammar, seed)
        answer = parse(parser(name), [text])
        assert answer.calls and not answer.flaws and not answer.content, text
        assert is_parallel or len(answer.calls) == 1
        for called, arguments in answer.calls:
            names.add(called)
            values = json.loads(arguments)
            if called == "now":
                assert values == {}
            else:
                assert values["unit"] in ("c", "f") and values["days"] in range(10), text
                assert isinstance(values["to"], str) and set(values) <= set(SHAPE["properties"])
    assert names == {"get_weather", "now"}


@tools_rows
def test_the_grammar_of_one_tool_calls_nothing_else(name: str) -> None:
    formats = Formats(tools=TOOL_CALLS.load(name))
    grammar = grammar_of(formats, demand(is_parallel=False, tools=TOOLS[1:]), is_open=False)
    for seed in range(4):
        answer = parse(parser(name), [generate(grammar, seed)])
        assert [called for called, _ in answer.calls] == ["now"]


@pytest.mark.parametrize("thinks", ["qwen3", "granite", "mistral"])
@pytest.mark.parametrize("is_open", [True, False])
def test_reasoning_may_come_before_a_forced_call(thinks: str, is_open: bool) -> None:
    formats = Formats(REASONING.load(thinks), TOOL_CALLS.load("hermes"))
    grammar = grammar_of(formats, demand(), is_open=is_open)
    thought = f"hm {formats.reasoning.ends[0]}" if formats.reasoning else ""
    head = thought if is_open else f"{formats.reasoning.starts[0]}{thought}"  # type: ignore[union-attr]
    for lead in [head] if is_open else [head, ""]:
        matcher = LLMatcher(BYTES, grammar)
        assert not matcher.is_error(), matcher.get_error()
        text = f'{lead}<tool_call>\n{{"name": "now", "arguments": {{}}}}\n</tool_call>'
        assert all(matcher.consume_token(byte) for byte in text.encode()), matcher.get_error()
        assert matcher.is_accepting()
        made = parser("hermes", thinks, is_open=is_open)
        answer = fold(made.push(text) + made.finish())
        assert answer.calls == (("now", "{}"),) and answer.reasoning == ("hm" if lead else "")


def allowed(matcher: LLMatcher) -> list[int]:
    mask = matcher.compute_bitmask()
    return [i for i in range(256) if mask[i // 8] >> (i % 8) & 1]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_budget_forces_the_end_of_the_reasoning_and_no_other_token(is_open: bool) -> None:
    start, end, most = ord("S"), ord("E"), 2000
    budget = Budget(most, start, end)
    shape = within_budget(budget, is_open=is_open)
    lead = b"" if is_open else b"S"
    matcher = LLMatcher(BYTES, shape.grammar or "")
    assert not matcher.is_error(), matcher.get_error()
    for byte in lead + b"a" * most:
        assert len(allowed(matcher)) > 200 and matcher.consume_token(byte)
    assert allowed(matcher) == [end] and matcher.consume_token(end)
    for byte in b"Yes, ESE":
        assert matcher.consume_token(byte) and matcher.is_accepting()
    early = LLMatcher(BYTES, shape.grammar or "")
    assert all(early.consume_token(byte) for byte in lead + b"aE" + b"b" * 3000)
    if not is_open:
        free = LLMatcher(BYTES, shape.grammar or "")
        assert all(free.consume_token(byte) for byte in b"b" * 3000)
    formats = Formats(REASONING.load("qwen3"), TOOL_CALLS.load("hermes"))
    forced = LLMatcher(BYTES, grammar_of(formats, demand(), is_open=True, budget=budget))
    assert all(forced.consume_token(byte) for byte in b"a" * most)
    assert allowed(forced) == [end] and forced.consume_token(end)
    assert forced.consume_token(ord("<")) and not forced.is_accepting()


@tools_rows
def test_strict_calls_are_forced_only_behind_their_trigger(name: str) -> None:
    made = TOOL_CALLS.load(name)
    formats = Formats(tools=made)
    grammar = grammar_of(formats, demand(), is_open=False, is_free=True)
    if not made.trigger:
        assert grammar == ""
        return
    matcher = LLMatcher(BYTES, grammar)
    assert not matcher.is_error(), matcher.get_error()
    for byte in b"Just <text>.":
        assert matcher.consume_token(byte)
    assert matcher.is_accepting()
    for byte in made.trigger.encode():
        assert matcher.consume_token(byte)
    assert not matcher.is_accepting()
