"""Lark texts: choices, structural tags, and a look at what a caller's own grammar embeds. Knows no parser.

A structural tag is free text with constrained spans, in the shape that vLLM documents
(https://docs.vllm.ai/en/latest/features/structured_outputs.html): `structures` with `begin`, `schema` and `end`, and
`triggers`, prefixes of `begin` at which a span starts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar import json_schema
from octavo.decoding.grammar.base import GrammarError, Vocabulary

MAX_STRUCTURES = 256
MAX_TRIGGERS = 64
WHITESPACE = r"(?: |\r?\n[ \t]{0,40})"
"""Between the tokens of JSON unless asked otherwise: a space, or a new line with its indentation. Models that may write
any white space are known to write nothing else until they run out of tokens."""
_PLAIN = StructuredOutputs(json_object=True)
_EMBEDDED = re.compile(r"%json(?=[\s{\[])\s*")


class Structure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of span."""

    begin: str
    schema: dict[str, Any] | bool
    end: str


class StructuralTag(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Free text with spans."""

    structures: list[Structure]
    triggers: list[str]
    type: str = "structural_tag"


class Lark:
    """Writes grammars for one vocabulary, whose special tokens are no text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        added = json.loads(vocabulary.tokenizer_json).get("added_tokens", ())
        specials = sorted({row["content"] for row in added if row["special"]}, key=len)
        # Only names in angle brackets can be written in a grammar.
        self._specials = [name for name in reversed(specials) if re.fullmatch(r"<[^<>\s]+>", name)]

    def choice(self, choices: Sequence[str]) -> str:
        """One of the texts."""
        texts = " | ".join(quoted(text) for text in dict.fromkeys(choices))
        # In one terminal: as rules, thousands of choices would be as many items of the parser.
        return f"start: CHOICE\nCHOICE: {texts}"

    def checked(self, grammar: str, param: str) -> str:
        """The grammar, once the schemas in it are known to be enforced; white space in them is bounded."""
        decoder = json.JSONDecoder()
        parts: list[str] = []
        done = 0
        for found in _EMBEDDED.finditer(grammar):
            if found.start() < done:
                continue  # inside the schema before it
            try:
                _, end = decoder.raw_decode(grammar, found.end())
            except (ValueError, RecursionError) as error:
                raise GrammarError(f"{param}: %json is followed by no JSON: {error}.", param=param) from error  # fmt: skip
            schema = json_schema.parse(grammar[found.end() : end], param)
            json_schema.check(schema, param)
            if not isinstance(schema, bool):
                schema = json_schema.prepared(schema)
            parts += [grammar[done : found.end()], _with_options(schema, _PLAIN)]
            done = end
        return "".join([*parts, grammar[done:]])

    def structural_tag(self, wanted: StructuredOutputs, param: str) -> str:
        """Text in which every trigger begins one of the structures."""
        assert wanted.structural_tag is not None, "called for a structural tag"
        tag = _read(json_schema.parse(wanted.structural_tag, param), param)
        rules, names = [], []
        for index, structure in enumerate(tag.structures):
            triggers = [text for text in tag.triggers if structure.begin.startswith(text)]
            if not triggers:
                raise GrammarError(
                    f"{param}: structures[{index}].begin is {structure.begin[:64]!r}, which no trigger begins.",
                    param=param,
                )
            json_schema.check(structure.schema, param, f"/structures/{index}/schema")
            schema = json_schema.prepared(structure.schema)
            if wanted.disable_additional_properties:
                schema = json_schema.closed(schema)
            trigger = max(triggers, key=len)
            names.append(f"tag_{index}")
            rules += self._rules(names[-1], trigger, structure, _with_options(schema, wanted))
        text = "TEXT: /(.|\\n)*/"
        return "\n".join([f"start: ({' | '.join(names)})* rest", "rest: TEXT", text, *rules])

    def _rules(self, name: str, trigger: str, structure: Structure, schema: str) -> list[str]:
        head = structure.begin[len(trigger) :]
        body = f"{self._text(head)} %json {schema} {self._text(structure.end)}"
        if trigger in self._specials:
            return [f"{name}: TEXT {trigger} {body}"]
        return [f"{name}_at[lazy]: TEXT {quoted(trigger)}", f"{name}: {name}_at {body}"]

    def _text(self, text: str) -> str:
        """A fixed text, its special tokens as such."""
        if not self._specials:
            return quoted(text) if text else ""
        pattern = "(" + "|".join(re.escape(name) for name in self._specials) + ")"
        pieces = [piece for piece in re.split(pattern, text) if piece]
        return " ".join(
            piece if piece in self._specials else quoted(piece) for piece in pieces
        )  # fmt: skip


def json_options(wanted: StructuredOutputs) -> dict[str, Any]:
    """How JSON is to be written, in the words of the library."""
    if wanted.disable_any_whitespace:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": wanted.whitespace_pattern or WHITESPACE}


def quoted(text: str) -> str:
    """A text as a Lark string."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(value: Any, param: str) -> StructuralTag:
    try:
        tag = msgspec.convert(value, StructuralTag)
    except msgspec.ValidationError as error:
        raise GrammarError(f"{param}: {error}.", param=param) from error
    if tag.type != "structural_tag":
        raise GrammarError(
            f"{param}: type is {tag.type[:64]!r}; expected 'structural_tag'.", param=param
        )
    if not 0 < len(tag.structures) <= MAX_STRUCTURES or not 0 < len(tag.triggers) <= MAX_TRIGGERS:
        raise GrammarError(
            f"{param} has {len(tag.structures)} structures and {len(tag.triggers)} triggers; expected 1 to "
            f"{MAX_STRUCTURES} and 1 to {MAX_TRIGGERS}.",
            param=param,
        )
    if not all(tag.triggers):
        raise GrammarError(f"{param} has an empty trigger.", param=param)
    return tag


def _with_options(schema: Any, wanted: StructuredOutputs) -> str:
    """The schema as JSON text that says how white space is written."""
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": json_options(wanted)}
    return json.dumps(schema)
