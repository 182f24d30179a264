"""Forced calls through the real engine with random weights: whatever the model would say, a call comes out, and parses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from fakes import EOS, VOCAB_SIZE, byte_tokenizer
from grammar_corpus import vocabulary
from local_engine import LocalEngine, request, write_tiny
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.llguidance import Backend
from octavo.engine.ipc import UseVocabulary
from octavo.text.parsers.base import Demand, Tool
from octavo.text.parsers.demand import Budget, after_reasoning, grammar_of, within_budget
from octavo.text.parsers.output import Formats, OutputParser
from octavo.text.parsers.registry import REASONING, TOOL_CALLS
from transcripts import fold

SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "unit": {"type": "string", "enum": ["c", "f"]},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
    },
    "required": ["unit", "days"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{0,3}$"}},
}
TOOLS = {"get_weather": Tool("get_weather", SHAPE), "now": Tool("now", {})}
BACKEND = Backend(vocabulary())
NUM_EACH = 6


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    folder = write_tiny(tmp_path_factory.mktemp("tiny"), vocab_size=VOCAB_SIZE)
    (Path(folder) / "tokenizer.json").write_text(byte_tokenizer().to_json())
    made = LocalEngine(folder, max_model_len=512)
    made.link.inbox.append(UseVocabulary(vocabulary()))
    yield made


def run(made: LocalEngine, name: str, grammar: str, max_tokens: int = 400) -> list[str]:
    """What the model says, sampled at temperature 1, under a grammar."""
    compiled = BACKEND.compile(StructuredOutputs(grammar=grammar))
    asked = [
        replace(
            request(
                f"{name}{seed}", list(b"x: "), temperature=1.0, seed=seed, max_tokens=max_tokens, eos_token_ids=(EOS,)
            ),
            grammar=compiled,
        )
        for seed in range(NUM_EACH)
    ]  # fmt: skip
    made.submit(*asked)
    while made.link.inbox or made.engine.grammars.is_busy or made.engine.scheduler.has_work:
        made.step()
    said = [made.tokens[each.id] for each in asked]
    return [
        bytes(token for token in tokens if token < EOS).decode(errors="ignore") for tokens in said
    ]


@pytest.mark.parametrize("name", sorted(set(TOOL_CALLS) - {"openai"}))
@pytest.mark.parametrize("named", [None, "now"])
def test_a_call_comes_out(engine: LocalEngine, name: str, named: str | None) -> None:
    formats = Formats(tools=TOOL_CALLS.load(name))
    tools = (TOOLS[named],) if named else tuple(TOOLS.values())
    grammar = grammar_of(formats, Demand(tools, False, lambda marker: None), is_open=False)
    for text in run(engine, f"{name}-{named}-", grammar):
        parser = OutputParser(formats, TOOLS)
        answer = fold(parser.push(text) + parser.finish())
        assert not answer.content and not answer.flaws, text
        ((called, arguments),) = answer.calls
        values = json.loads(arguments)
        assert called == named or not named
        if called == "now":
            assert values == {}
        else:
            assert values["unit"] in ("c", "f") and values["days"] in range(10)


def test_a_bound_answer_follows_the_reasoning(engine: LocalEngine) -> None:
    formats = Formats(REASONING.load("qwen3"))
    shape = StructuredOutputs(choice=("yes", "no"))
    made = after_reasoning(formats, shape, lambda marker: None, is_open=False)
    assert made is not None and made.grammar is not None
    for text in run(engine, "answer-", made.grammar):
        parser = OutputParser(formats, {})
        answer = fold(parser.push(text) + parser.finish())
        assert answer.content in ("yes", "no") or answer.reasoning


def test_a_thinking_budget_holds(engine: LocalEngine) -> None:
    most, end = 20, "~"
    shape = within_budget(Budget(most, ord("^"), ord(end)), is_open=True)
    assert shape.grammar is not None
    ends = [text.index(end) for text in run(engine, "budget-", shape.grammar, max_tokens=60)]
    assert max(ends) <= most and len(ends) == NUM_EACH
