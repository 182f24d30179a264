"""Schemas that every backend has to enforce, instances of random walks through them, and what callers with bad
intentions send.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from fakes import EOS, VOCAB_SIZE, byte_tokenizer
from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar.base import Grammar, Vocabulary
from octavo.decoding.grammar.compiler import GrammarCompiler
from octavo.decoding.grammar.worker import Outcome

TEXT = {"type": "string", "maxLength": 8}
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 41}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"n": TEXT, "t": {"type": "array", "items": {"enum": ["x", 1, None]}, "minItems": 1, "maxItems": 3}}, "required": ["t"], "additionalProperties": False},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "ü\"\n"}], "items": False, "minItems": 2},
    {"$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"], "additionalProperties": False}}, "$ref": "#/$defs/node"},
    {"type": "string", "pattern": "^[a-f]{2,4}-[0-9]+$", "maxLength": 9},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": ["string", "null"], "format": "date-time", "maxLength": 24},
    {"type": "string", "format": "time", "maxLength": 14},
    {"oneOf": [{"type": "integer", "minimum": -5, "maximum": 5}, {"type": "boolean"}, TEXT]},
    {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 99}, "maxProperties": 2},
    {"type": "object", "patternProperties": {"^k[0-9]$": {"type": "boolean"}}, "additionalProperties": False, "maxProperties": 3},
    {"allOf": [{"type": "object", "properties": {"a": TEXT}, "required": ["a"]}, {"type": "object", "properties": {"b": {"type": "number", "multipleOf": 0.5, "minimum": 0, "maximum": 3}}, "required": ["b"]}], "maxProperties": 2},
    {"enum": [{"a": [1, 2.5]}, [], "", False, -3]},
    {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"p": {"type": "integer", "exclusiveMinimum": 0, "maximum": 20}}, "type": "array", "items": [{"$ref": "#/definitions/p"}], "additionalItems": False, "minItems": 1},
]  # fmt: skip

REFUSED: list[tuple[Any, str]] = [
    ({"not": {"type": "string"}}, "/not"),
    ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
    ({"type": "array", "contains": {"const": 1}}, "/contains"),
    ({"properties": {"a/b": {"if": {}, "then": {}}}}, "/properties/a~1b/if"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "/dependentRequired"),
    ({"type": "object", "dependencies": {"a": ["b"]}}, "/dependencies"),
    ({"type": "object", "propertyNames": {"pattern": "a"}}, "/propertyNames"),
    ({"type": "object", "unevaluatedProperties": False}, "/unevaluatedProperties"),
    ({"type": "string", "nullable": True}, "/nullable"),
    ({"type": "string", "minlength": 3}, "/minlength"),
    ({"$dynamicRef": "#x"}, "/$dynamicRef"),
    ({"x-guidance": {"lenient": True}, "type": "string"}, "/x-guidance"),
    ({"type": "string", "format": "int32"}, "/format"),
    ({"type": "integer", "format": "date"}, "/format"),
    ({"type": "string", "format": "unknown"}, "/format"),
    ({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(?=a)b"}]}, "/anyOf/1"),
    ({"type": "array", "items": {"oneOf": [TEXT, {"type": "string"}]}}, "/items"),
    ({"properties": {"a": {"type": "nothing"}}}, "/properties/a"),
    ({"items": {"minimum": (1 << 53) + 2}}, "/items/minimum"),
    ({"type": "object", "minProperties": 2}, "/minProperties"),
    ({"properties": {"a": {"$ref": "http://elsewhere/schema"}}}, "/properties/a"),
    ({"properties": {"a": {"$ref": "#/$defs/gone"}}}, "/properties/a"),
    ({"$schema": "http://elsewhere/schema"}, "/$schema"),
    ({"type": "object", "properties": {"a": {"minLength": 3, "maxLength": 2, "type": "string"}}, "required": ["a"]}, "/properties/a"),
    ({"items": [1]}, "/items/0"),
]  # fmt: skip
"""Schemas, and the JSON pointer of what cannot be enforced."""


def vocabulary() -> Vocabulary:
    """One token per byte; small enough for brute force."""
    return Vocabulary(
        tokenizer_json=byte_tokenizer().to_json(), eos_token_ids=(EOS,), vocab_size=VOCAB_SIZE
    )


def hostile() -> dict[str, StructuredOutputs]:
    """Security classes S6 and S11: what is small to send and large to compile or to run."""
    deep = json.dumps({"type": "string"})
    for _ in range(3000):
        deep = '{"items":' + deep + "}"
    mutual = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{(i + 1) % 9}"}, {"$ref": f"#/$defs/d{(i + 4) % 9}"}]} for i in range(9)}  # fmt: skip
    fan = [{"anyOf": [{"type": "object", "properties": {f"p{i}": {"minLength": i}}} for i in range(j, j + 12)]} for j in range(7)]  # fmt: skip
    return {
        "repetition": StructuredOutputs(regex="((((a{1,999}){1,999}){1,999}){1,999}){1,999}"),
        "exponential": StructuredOutputs(regex="(a|b)*a(a|b){40}"),
        "nested quantifiers": StructuredOutputs(regex="((x+x+)+)+y"),
        "deep groups": StructuredOutputs(regex="(" * 9000 + ")" * 9000),
        "intersections": StructuredOutputs(json=json.dumps({"allOf": fan})),
        "deep": StructuredOutputs(json=deep),
        "self": StructuredOutputs(json='{"$ref":"#"}'),
        "mutual": StructuredOutputs(json=json.dumps({"$defs": mutual, "$ref": "#/$defs/d0"})),
        "many optional": StructuredOutputs(json=json.dumps({"type": "object", "properties": {f"p{i}": {} for i in range(3000)}})),
        "huge counts": StructuredOutputs(json=json.dumps({"type": "array", "minItems": 1 << 40, "items": {"type": "array", "minItems": 1 << 40}})),
        "huge length": StructuredOutputs(json=json.dumps({"type": "string", "minLength": 1 << 52})),
        "endless rule": StructuredOutputs(grammar="start: a\na: b\nb: a"),
        "empty rules": StructuredOutputs(grammar='start: a* b*\na: ""*\nb: a+ | ""'),
        "ambiguous": StructuredOutputs(grammar='start: start start | "a" | ""'),
        "deep rules": StructuredOutputs(grammar="start: " + "(" * 20000 + '"a"' + ")" * 20000),
        "repeated rule": StructuredOutputs(grammar='start: x{4000000000}\nx: "a"'),
        "no grammar": StructuredOutputs(grammar="\x00" * 4096),
    }  # fmt: skip


def allowed_ids(grammar: Grammar) -> list[int]:
    """Token ids that the mask allows."""
    words = np.zeros(-(-VOCAB_SIZE // 32), np.uint32)
    grammar.mask(words)
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    assert not bits[VOCAB_SIZE:].any(), "what only fills the last word is never allowed"
    ids: list[int] = np.flatnonzero(bits).tolist()
    return ids


def walk(grammar: Grammar, rng: random.Random, most: int) -> list[int] | None:
    """A random output; None when it is not complete after `most` tokens."""
    output: list[int] = []
    while len(output) < most:
        if grammar.is_finished():
            return output
        ids = allowed_ids(grammar)
        if EOS in ids and (len(ids) == 1 or rng.random() < 0.3):
            return output
        token_id = rng.choice([each for each in ids if each != EOS])
        grammar.advance(token_id)
        output.append(token_id)
    return None


def text_of(token_ids: Sequence[int]) -> str:
    """The output as text."""
    return bytes(token_ids).decode()


class Instant(GrammarCompiler):
    """Compiles without a process: what is looked at is what is kept."""

    def _begin(self, key: bytes) -> asyncio.Future[Outcome]:
        job: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self._under_way[key] = job
        job.add_done_callback(lambda done: self._finish(key, done))
        job.set_result(Outcome(source=key.hex() * 8))
        return job
