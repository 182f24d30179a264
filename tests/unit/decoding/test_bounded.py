"""Masks within strings of bounded length: put together, they are bit for bit those that the library searches for."""

from __future__ import annotations

import json
import random
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.assets import model_folder
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar import bounded
from octavo.decoding.grammar.base import Vocabulary
from octavo.decoding.grammar.bounded import MOST_LEFT
from octavo.decoding.grammar.llguidance import Backend
from octavo.decoding.grammar.strings import MAX_TESTS, STRANGE, are_told_apart
from octavo.text.tokenizer import Tokenizer

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SIZE = 4096
SHORT = {"type": "string", "maxLength": 5}


def record(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


CAT = record(kind={"const": "cat"}, name=SHORT)
DOG = record(kind={"const": "dog", "type": "string"}, name={"enum": ["long enough", "x"]})
APART: dict[str, Any] = {
    "plain": record(a={"type": "string", "maxLength": 12}, b={"type": "string", "minLength": 3, "maxLength": 40}),
    "nullable": record(a={"anyOf": [SHORT, {"type": "null"}, {"type": "integer"}]}, b={"type": ["string", "null"], "maxLength": 3}),
    "beside patterns": record(a=SHORT, b={"type": "string", "pattern": "^[a-z]{1,9}$"}, c={"type": "string", "format": "date"}),
    "unbounded": record(a={"type": "string"}, b={"type": "string", "maxLength": 200}),
    "names": {"type": "object", "additionalProperties": SHORT, "properties": {"known": SHORT}, "maxProperties": 3, "required": ["known"]},
    "names with a pattern": {"type": "object", "patternProperties": {"^[a-z]{1,8}$": SHORT}, "additionalProperties": False, "maxProperties": 3},
    "told by their kind": {"type": "array", "items": {"anyOf": [CAT, DOG]}, "minItems": 3, "maxItems": 3},
    "by reference": {"$defs": {"cat": CAT, "dog": {"$ref": "#/$defs/hound"}, "hound": DOG}, **record(a={"anyOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}, {"type": "null"}]})},
    "nested": {"type": "array", "prefixItems": [SHORT, record(c={"type": "array", "items": SHORT, "minItems": 1, "maxItems": 2})], "items": False, "minItems": 2},
}  # fmt: skip
NOT_APART: dict[str, Any] = {
    "two strings": {"anyOf": [SHORT, {"enum": ["something longer", "else"]}]},
    "a string and anything": {"anyOf": [SHORT, {}]},
    "a type with several": {"anyOf": [SHORT, {"type": ["integer", "string"], "pattern": "^[a-z ]{0,40}$"}]},
    "objects alike": {"oneOf": [record(name=SHORT, kind={"const": "a"}), record(name={"type": "string", "pattern": "^[a-z ]{0,40}$"}, kind={"const": "b"})]},
    "kinds of one name": {"anyOf": [CAT, record(kind={"const": "cat"}, name={"enum": ["long enough", "x"]})]},
    "kind not required": {"anyOf": [CAT, {**DOG, "required": ["name"]}]},
    "lists": {"anyOf": [{"type": "array", "items": SHORT}, {"type": "array", "items": {"enum": ["something longer"]}}]},
    "an open pattern": {"type": "string", "pattern": "a", "maxLength": 8},
    "a pattern of all but": {"type": "string", "pattern": "^[^b]{0,8}$"},
    "half of a pattern open": {"type": "string", "pattern": "^(a|b)$|c$", "maxLength": 8},
    "names with an open pattern": {"type": "object", "patternProperties": {"^.{1,4}$": SHORT}},
    "names of two patterns": {"type": "object", "patternProperties": {"^a": SHORT, "^b": {"enum": ["longer than"]}}},
    "merged": {"type": "string", "maxLength": 8, "allOf": [{"pattern": "a"}]},
    "merged objects": {"allOf": [record(a=SHORT), {"properties": {"a": {"pattern": "b"}}}]},
    "beside a reference": {"$ref": "#/properties/w", "pattern": "a"},
    "a union within": {"anyOf": [{"type": "integer"}, {"anyOf": [SHORT, {"type": "null"}]}, {"enum": ["longer than"]}]},
    "the strange one": {"enum": [f"a{STRANGE}"]},
    "too many to look into": record(**{f"a{n}": {"type": "string", "pattern": f"^b{{1,{n + 1}}}$"} for n in range(MAX_TESTS + 1)}),
}  # fmt: skip


@cache
def backend(least: int = 0) -> Backend:
    known = Vocabulary(
        tokenizer_json=tokenizer().to_json(),
        eos_token_ids=tokenizer().eos_token_ids,
        vocab_size=SIZE,
    )
    made = Backend(known, least_vocabulary=least)
    made.prepare()
    return made


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(model_folder("octavo-mini"))


@cache
def has_quote() -> Any:
    return np.array([b'"' in backend()._tokenizer.decode_bytes([n]) for n in range(SIZE)])


def ids_of(text: str) -> list[int]:
    return list(tokenizer().encode(text, add_special_tokens=False))


def ways(schema: Any, **options: Any) -> tuple[Any, Any]:
    """A grammar that puts masks together where it may, and one that never does."""
    source = backend().compile(StructuredOutputs(json=json.dumps(schema), **options))
    return backend().build(source), backend(SIZE + 1).build(source)


def walked(both: tuple[Any, Any], seed: int, most: int = 120) -> int:
    """How many masks along a random walk were put together; all are compared."""
    rng, found = random.Random(seed), 0
    ours_W, theirs_W = np.zeros(SIZE // 32, np.uint32), np.zeros(SIZE // 32, np.uint32)
    for _ in range(most):
        if both[0].is_finished():
            break
        both[1].mask(theirs_W)
        ours_W[:] = rng.getrandbits(32)
        if both[0].is_put_together(ours_W):
            assert np.array_equal(ours_W, theirs_W), both[0].matcher
            found += 1
        allowed = np.flatnonzero(np.unpackbits(theirs_W.view(np.uint8), bitorder="little"))
        # Half of the time what does not end the string, or it is seldom long.
        longer = allowed[~has_quote()[allowed]]
        token_id = int(rng.choice(longer if len(longer) and rng.random() < 0.5 else allowed))
        for grammar in both:
            grammar.advance(token_id)
    return found


@pytest.mark.parametrize("name", APART)
def test_put_together_and_searched_for_are_the_same(name: str) -> None:
    assert sum(walked(ways(APART[name]), seed) for seed in range(16)) >= 4
    assert walked(ways(APART[name], disable_any_whitespace=True), 7) >= 0


def test_the_same_on_varied_schemas() -> None:
    known = runpy.run_path(str(BENCHMARKS / "schemas.py"))["schemas"](30)
    found = [walked(ways(schema), seed) for seed, schema in enumerate(known)]
    assert sum(found) > 100


@pytest.mark.parametrize("name", NOT_APART)
def test_where_strings_are_not_told_apart_masks_are_searched_for(name: str) -> None:
    source = backend().compile(
        StructuredOutputs(json=json.dumps(record(v=NOT_APART[name], w=SHORT)))
    )
    ours, theirs = backend().build(source), backend(SIZE + 1).build(source)
    assert sum(walked((ours, theirs), seed) for seed in range(2)) == 0


@pytest.mark.parametrize(
    ("name", "text"),
    [("two strings", "some"), ("an open pattern", "b"), ("a pattern of all but", "")],
)
def test_looking_is_needed(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "are_told_apart", lambda *_: True)
    schema = {**record(v=NOT_APART[name]), "description": "another source than that of other tests"}
    both = ways(schema)
    for token_id in ids_of(f'{{"v":"{text}'):
        for grammar in both:
            grammar.advance(token_id)
    ours_W, theirs_W = np.zeros(SIZE // 32, np.uint32), np.zeros(SIZE // 32, np.uint32)
    both[1].mask(theirs_W)
    assert both[0].is_put_together(ours_W)
    assert not np.array_equal(ours_W, theirs_W)


def test_other_grammars_are_left_alone() -> None:
    for wanted in (
        StructuredOutputs(regex="[a-z]{1,9}"),
        StructuredOutputs(choice=("a", "b")),
        StructuredOutputs(json=json.dumps(record(v=SHORT)), whitespace_pattern=r"[ a\"]*"),
    ):
        source = backend().compile(wanted)
        both = backend().build(source), backend(SIZE + 1).build(source)
        assert walked(both, 1, 20) == 0


def test_small_vocabularies_are_left_alone() -> None:
    source = backend().compile(StructuredOutputs(json=json.dumps(record(v=SHORT))))
    assert walked((backend(SIZE + 1).build(source),) * 2, 1, 0) == 0
    assert Backend.__init__.__kwdefaults__ == {"least_vocabulary": bounded.LEAST_VOCABULARY}


def test_a_grammar_goes_back_and_on() -> None:
    both = ways(APART["plain"])
    text = '{"a":"some text'
    ids = ids_of(text)
    words_W = np.zeros(SIZE // 32, np.uint32)
    for back in (0, 2, len(ids)):
        for grammar in both:
            grammar.rollback(back)
        for token_id in ids[len(ids) - back :] if back else ids:
            for grammar in both:
                grammar.advance(token_id)
        assert both[0].is_put_together(words_W)
        expected_W = np.zeros_like(words_W)
        both[1].mask(expected_W)
        assert np.array_equal(words_W, expected_W)


def test_beyond_the_table_the_library_is_asked_and_the_length_again_later() -> None:
    both = ways(record(v={"type": "string", "maxLength": MOST_LEFT + 3}))
    for token_id in ids_of('{"v":"'):
        for grammar in both:
            grammar.advance(token_id)
    ours_W, theirs_W = np.zeros(SIZE // 32, np.uint32), np.zeros(SIZE // 32, np.uint32)
    found = []
    for _ in range(MOST_LEFT + 3):
        found.append(both[0].is_put_together(ours_W))
        both[1].mask(theirs_W)
        assert not found[-1] or np.array_equal(ours_W, theirs_W)
        for grammar in both:
            grammar.advance(ids_of("a")[0])
    assert not any(found[:3])
    assert all(found[MOST_LEFT // 2 + 8 :])
    assert not both[0].is_put_together(ours_W), "only the end is left"


def test_a_schema_of_nothing_said_is_told_apart() -> None:
    assert are_told_apart({}, lambda _: True)
    assert are_told_apart(True, lambda _: True)
