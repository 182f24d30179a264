"""Every grammar backend against brute force, JSON Schema's own validator, and callers with bad intentions."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import jsonschema
import msgspec
import pytest

from fakes import EOS, VOCAB_SIZE
from grammar_corpus import REFUSED, SCHEMAS, allowed_ids, hostile, text_of, vocabulary, walk
from octavo.core.errors import RequestError
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Grammar, GrammarBackend, GrammarError
from octavo.decoding.grammar.registry import DEFAULT, GRAMMARS
from octavo.decoding.grammar.worker import CompileLimits, WorkerProcess

TAG = json.dumps(
    {
        "structures": [
            {"begin": "<f=a>", "schema": {"type": "integer", "maximum": 9, "minimum": 0}, "end": "</f>"},
            {"begin": "<f=b>", "schema": {"enum": ["x"]}, "end": "</f>"},
        ],
        "triggers": ["<f="],
    }
)  # fmt: skip
ACCEPTED: list[tuple[StructuredOutputs, str]] = [
    (StructuredOutputs(json_object=True), '{"a": [1, "x"],\n  "b": {}}'),
    (StructuredOutputs(json='{"type":"array"}', disable_any_whitespace=True), '[1,{"a":2}]'),
    (StructuredOutputs(json='{"type":"array"}', whitespace_pattern="_{0,2}"), "[__1_,2]"),
    (StructuredOutputs(json='{"properties":{"a":true}}', disable_additional_properties=True), '{"a": 3}'),
    (StructuredOutputs(regex=r"[a-z]+@[a-z]+\.(com|org)"), "me@there.org"),
    (StructuredOutputs(regex=r"^\d{3}$"), "123"),
    (StructuredOutputs(choice=("yes", "no", 'é"\\\n\x7f')), 'é"\\\n\x7f'),
    (StructuredOutputs(choice=tuple(f"k{i}" for i in range(4096))), "k4095"),
    (StructuredOutputs(grammar='root ::= "a" b*\nb ::= [0-9] | "x"'), "a1x2"),
    (StructuredOutputs(grammar='start: "v=" %json {"type": "boolean"}'), "v=true"),
    (StructuredOutputs(structural_tag=TAG), "so <f=a>7</f> and <f=b>\"x\"</f>."),
]  # fmt: skip
REJECTED: list[tuple[StructuredOutputs, str]] = [
    (StructuredOutputs(json_object=True), "[1]"),
    (StructuredOutputs(json='{"type":"array"}', disable_any_whitespace=True), "[1, 2]"),
    (StructuredOutputs(json='{"properties":{"a":true}}', disable_additional_properties=True), '{"b": 3}'),
    (StructuredOutputs(choice=("yes", "no")), "maybe"),
    (StructuredOutputs(structural_tag=TAG), "so <f=a>77"),
    (StructuredOutputs(structural_tag=TAG), "so <f=c>"),
    (StructuredOutputs(grammar='start: "v=" %json {"type": "boolean"}'), "v=1"),
]  # fmt: skip


@cache
def backend(name: str) -> GrammarBackend:
    return GRAMMARS.load(name)(vocabulary())


@pytest.fixture(params=list(GRAMMARS))
def made(request: pytest.FixtureRequest) -> GrammarBackend:
    return backend(request.param)


def build(made: GrammarBackend, wanted: StructuredOutputs) -> Grammar:
    return made.build(made.compile(wanted))


def of_schema(made: GrammarBackend, schema: Any) -> Grammar:
    return build(made, StructuredOutputs(json=json.dumps(schema)))


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_what_ends_is_valid(made: GrammarBackend, index: int) -> None:
    schema = SCHEMAS[index]
    dialect = jsonschema.validators.validator_for(schema)  # draft 2020-12 where it does not say
    validator = dialect(schema, format_checker=dialect.FORMAT_CHECKER)
    rng = random.Random(index)
    source = made.compile(StructuredOutputs(json=json.dumps(schema)))
    whole = [walk(made.build(source), rng, 400) for _ in range(12)]
    ended = [text_of(output) for output in whole if output is not None]
    assert len(ended) >= 4, "most walks end"
    for text in ended:
        validator.validate(json.loads(text))


@pytest.mark.parametrize("index", range(len(SCHEMAS)))
def test_a_mask_is_what_can_be_taken(made: GrammarBackend, index: int) -> None:
    rng = random.Random(index)
    source = made.compile(StructuredOutputs(json=json.dumps(SCHEMAS[index])))
    grammar, taken = made.build(source), []
    for _ in range(8):
        if grammar.is_finished():
            break
        allowed = allowed_ids(grammar)
        for token_id in {*rng.sample(range(VOCAB_SIZE), 16), *allowed[:4], *b'"{ 1a', EOS}:
            trial = made.build(source)
            for each in taken:
                trial.advance(each)
            if token_id in allowed:
                trial.advance(token_id)
            else:
                with pytest.raises(GrammarError):
                    trial.advance(token_id)
        forced = grammar.forced()
        assert not forced or allowed == [forced[0]], "a byte that is forced is all there is"
        taken.append(rng.choice([each for each in allowed if each != EOS] or [EOS]))
        grammar.advance(taken[-1])


def test_rollback_goes_back(made: GrammarBackend) -> None:
    grammar = of_schema(made, SCHEMAS[1])
    seen, taken, rng = [allowed_ids(grammar)], [], random.Random(1)
    while len(taken) < 30:
        taken.append(rng.choice([each for each in seen[-1] if each != EOS]))
        grammar.advance(taken[-1])
        if grammar.is_finished():
            break
        seen.append(allowed_ids(grammar))
    for count in (1, 3, len(taken) - 4):
        grammar.rollback(count)
        taken = taken[:-count]
        assert not grammar.is_finished() and allowed_ids(grammar) == seen[len(taken)]
    assert not taken


def test_the_end_comes_only_where_the_grammar_accepts(made: GrammarBackend) -> None:
    grammar = build(made, StructuredOutputs(regex="(ab)*c?"))
    assert EOS in allowed_ids(grammar)
    grammar.advance(ord("a"))
    assert allowed_ids(grammar) == [ord("b")]
    grammar.advance(ord("b"))
    assert set(allowed_ids(grammar)) == {EOS, ord("a"), ord("c")} and not grammar.is_finished()
    grammar.advance(ord("c"))
    assert grammar.is_finished()


@pytest.mark.parametrize(("wanted", "text"), ACCEPTED)
def test_what_is_meant_is_taken(made: GrammarBackend, wanted: StructuredOutputs, text: str) -> None:
    grammar = build(made, wanted)
    for byte in text.encode():
        grammar.advance(byte)
    assert grammar.is_finished() or EOS in allowed_ids(grammar)


@pytest.mark.parametrize(("wanted", "text"), REJECTED)
def test_what_is_not_meant_is_not_taken(
    made: GrammarBackend, wanted: StructuredOutputs, text: str
) -> None:
    grammar = build(made, wanted)
    with pytest.raises(GrammarError, match="gave up"):
        for byte in text.encode():
            grammar.advance(byte)
        raise AssertionError(f"{text!r} was taken")


@pytest.mark.parametrize(("schema", "pointer"), REFUSED, ids=[pointer for _, pointer in REFUSED])
def test_what_is_not_enforced_is_refused_with_its_pointer(
    made: GrammarBackend, schema: Any, pointer: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(f"at {pointer!r}")) as caught:
        of_schema(made, schema)
    assert caught.value.param == "structured_outputs.json"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"json": "{"}, "not valid JSON"),
        ({"json": '{"maximum": NaN}'}, "not valid JSON"),
        ({"json": '{"a": 1, "a": 2}'}, "'a' twice"),
        ({"json": "[]"}, "expected an object"),
        ({"json": "false"}, "cannot be used"),
        ({"regex": "["}, "cannot be used"),
        ({"regex": r"\bword"}, "cannot be used"),
        ({"grammar": "start: nothing"}, "cannot be used"),
        ({"grammar": "start: a\na: start"}, "allows no output"),
        ({"grammar": 'root ::= "a'}, "EBNF"),
        ({"grammar": 'start: %json {"not": {}}'}, "at '/not'"),
        ({"grammar": "start: %json {"}, "no JSON"),
        ({"structural_tag": "{}"}, "structures"),
        ({"structural_tag": '{"structures": [], "triggers": ["a"]}'}, "0 structures"),
        ({"structural_tag": TAG.replace('["<f="]', '["x"]')}, "no trigger"),
        ({"structural_tag": TAG.replace('"maximum"', '"maximal"')}, "/structures/0/schema/maximal"),
        ({"json": "{}", "whitespace_pattern": "["}, "cannot be used"),
    ],
)
def test_what_means_nothing_is_refused(
    made: GrammarBackend, given: dict[str, Any], problem: str
) -> None:
    with pytest.raises(GrammarError, match=re.escape(problem)) as caught:
        build(made, StructuredOutputs(**given))
    assert caught.value.param in {f"structured_outputs.{name}" for name in given}


def test_hostile_input_ends_in_a_refusal_or_in_a_grammar_that_gives_up() -> None:
    """In a process, as in the server; what compiles is then run in this one, under its own limits."""
    limits = CompileLimits(timeout_s=20.0)
    process = WorkerProcess(vocabulary(), limits, DEFAULT)
    for name, wanted in hostile().items():
        if not process.is_alive:
            process = WorkerProcess(vocabulary(), limits, DEFAULT)
        outcome = process.compile(msgspec.msgpack.encode(wanted))
        if outcome.error is not None:
            assert outcome.error.status == 400 and len(outcome.error.message) < 600, name
            continue
        try:
            walk(backend(DEFAULT).build(outcome.source), random.Random(0), 60)
        except RequestError as error:
            assert error.code == "grammar_limit", name
