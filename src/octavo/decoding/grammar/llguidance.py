"""Grammars by llguidance (https://github.com/guidance-ai/llguidance): an Earley parser over a lexer of derivatives,
walked along the trie of the vocabulary. It bounds its own work per step; what passes a bound becomes an error of that
request.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from octavo.core.structured import StructuredOutputs
from octavo.decoding.grammar import json_schema
from octavo.decoding.grammar.base import Grammar, GrammarError, Vocabulary, WordArray
from octavo.decoding.grammar.bounded import LEAST_VOCABULARY, BoundedStrings, PlainTokens
from octavo.decoding.grammar.lark import WHITESPACE, Lark, json_options
from octavo.decoding.grammar.lru import BytesLRU

_CACHE_BYTES = 64 << 20
_MATCHER_BYTES = 256 << 10
"""What a grammar of a small schema takes beside its source; larger ones take more in proportion to it."""
_BYTES_PER_CHAR = 64

_MAX_THREADS = 8
_CORES_PER_THREAD = 4
"""The model needs the others. Grammars of one source take turns in any case, for they share a lexer."""

_Built = tuple[LLMatcher, LLMatcher | None]
"""A grammar at its start, and the same over the vocabulary of `bounded.py` where that helps."""

_NOTHING = "it allows no output at all"


def limits() -> LLParserLimits:
    """Bounds of one step of one request: some milliseconds of work, some tens of megabytes of states."""
    return LLParserLimits(
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


class Backend:
    """Grammars for one vocabulary.

    Raises:
        GrammarError: the tokenizer is of a kind that the library cannot read.
    """

    def __init__(self, vocabulary: Vocabulary, *, least_vocabulary: int = LEAST_VOCABULARY) -> None:
        """`least_vocabulary`: from how many tokens on masks are put together where they can be; changes none."""
        try:
            self._tokenizer = LLTokenizer(
                vocabulary.tokenizer_json,
                n_vocab=vocabulary.vocab_size,
                eos_token=list(vocabulary.eos_token_ids) or None,
            )
        except ValueError as error:
            raise GrammarError(
                f"structured output does not work with this model's tokenizer: {error}.",
                param="structured_outputs",
            ) from error
        self._lark = Lark(vocabulary)
        self._puts_together = vocabulary.vocab_size >= least_vocabulary
        self._cache: BytesLRU[str, _Built] = BytesLRU(_CACHE_BYTES)
        self._lock = threading.Lock()
        self._plain: PlainTokens | None = None
        self._executor: LLExecutor | None = None

    def compile(self, wanted: StructuredOutputs) -> str:
        """As `GrammarBackend.compile`."""
        param = f"structured_outputs.{wanted.constraint}"
        source = self._translate(wanted, param)
        problem = self._problem(source)
        if problem and wanted.json is not None:
            self._refuse_part(wanted, problem, param)
        if problem:
            raise GrammarError(f"{param} cannot be used: {problem}.", param=param)
        return source

    def build(self, source: str) -> Grammar:
        """As `GrammarBackend.build`."""
        with self._lock:
            known = self._cache.get(source)
        if known is None:
            matcher = self._matcher(source)
            if matcher.is_error():
                reason = _first_line(matcher.get_error())
                raise GrammarError(f"the grammar does not build: {reason}.")
            known = matcher, self._bounded(source)
            size = _MATCHER_BYTES + _BYTES_PER_CHAR * len(source)
            with self._lock:
                self._cache.put(source, known, size if known[1] is None else 2 * size)
        matcher, second = known
        bounded = None
        if second is not None and self._plain is not None:
            bounded = BoundedStrings(self._plain, second.deep_copy())
        return _Matching(matcher.deep_copy(), self, bounded)

    def prepare(self) -> None:
        """As `GrammarBackend.prepare`."""
        if self._plain is None and self._puts_together:
            self._plain = PlainTokens(self._tokenizer, limits())

    def masks(
        self, work: Sequence[tuple[Grammar, int]], words_RW: WordArray, *, in_turn: bool
    ) -> None:
        """As `GrammarBackend.masks`."""
        place: int = words_RW.__array_interface__["data"][0]
        num_rows, num_words = words_RW.shape
        matchers: list[tuple[LLMatcher, int]] = []
        for grammar, row in work:
            assert isinstance(grammar, _Matching), "made by this backend"
            if not grammar.is_put_together(words_RW[row]):
                matchers.append((grammar.matcher, row))
        if in_turn or len(matchers) < 2:
            for matcher, row in matchers:
                matcher.unsafe_compute_mask_ptr(place + row * num_words * 4, num_words * 4)
            return
        if self._executor is None:
            cores = len(os.sched_getaffinity(0))
            self._executor = LLExecutor(min(_MAX_THREADS, max(1, cores // _CORES_PER_THREAD)))
        self._executor.unsafe_compute_mask_ptr(matchers, place, num_words * 4, num_rows)

    def _bounded(self, source: str) -> LLMatcher | None:
        self.prepare()
        return None if self._plain is None else self._plain.matcher(source, (WHITESPACE,))

    def _matcher(self, source: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, source, log_level=0, limits=limits())

    def _translate(self, wanted: StructuredOutputs, param: str) -> str:
        if wanted.json is not None:
            return self._json(json_schema.parse(wanted.json, param), wanted, param)
        if wanted.json_object:
            return self._json({"type": "object"}, wanted, param)
        if wanted.regex is not None:
            return str(LLMatcher.grammar_from_regex(wanted.regex))
        if wanted.choice is not None:
            return self._lark.choice(wanted.choice)
        if wanted.grammar is not None:
            return self._lark.checked(_as_lark(wanted.grammar, param), param)
        assert wanted.structural_tag is not None, "one constraint is set"
        return self._lark.structural_tag(wanted, param)

    def _json(self, schema: Any, wanted: StructuredOutputs, param: str) -> str:
        json_schema.check(schema, param)
        if schema is False:
            raise GrammarError(f"{param} cannot be used: {_NOTHING}.", param=param)
        schema = {} if schema is True else json_schema.prepared(schema)
        if wanted.disable_additional_properties:
            schema = json_schema.closed(schema)
        return _json_grammar(schema, wanted)

    def _problem(self, source: str) -> str:
        """Why a source cannot be used; the empty string when it can."""
        matcher = self._matcher(source)
        if not matcher.is_error() and not matcher.is_stopped():
            allowed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
            if not matcher.is_error() and not allowed.any():
                return _NOTHING
        if matcher.is_error():
            reason = _first_line(matcher.get_error())
            return _NOTHING if reason.startswith("NoExtension") else reason
        return "; ".join(matcher.get_grammar_warnings())

    def _refuse_part(self, wanted: StructuredOutputs, problem: str, param: str) -> None:
        """Name the place in the schema that is at fault, if a part of it is alone."""
        assert wanted.json is not None, "called for a schema"
        schema = json_schema.prepared(json_schema.parse(wanted.json, param))

        def fails(part: Any) -> bool:
            return self._matcher(_json_grammar(part, wanted)).is_error()

        pointer = json_schema.locate(schema, fails)
        json_schema.refuse(param, pointer, f"cannot be used: {problem}")


class _Matching:
    """A grammar in use."""

    def __init__(
        self, matcher: LLMatcher, backend: Backend, bounded: BoundedStrings | None = None
    ) -> None:
        self.matcher = matcher
        self.backend = backend
        self._bounded = bounded

    def mask(self, words_W: WordArray) -> None:
        """As `Grammar.mask`."""
        if not self.is_put_together(words_W):
            place: int = words_W.__array_interface__["data"][0]
            self.matcher.unsafe_compute_mask_ptr(place, words_W.nbytes)
        self.check()

    def is_put_together(self, words_W: WordArray) -> bool:
        """Whether the mask could be, which costs less than the library's; then it is written."""
        return self._bounded is not None and self._bounded.mask(self.matcher, words_W)

    def check(self) -> None:
        """As `Grammar.check`."""
        if self.matcher.is_error():
            raise self._failure()

    def advance(self, token_id: int) -> None:
        """As `Grammar.advance`."""
        if not self.matcher.consume_token(token_id):
            raise self._failure()
        if self._bounded is not None:
            self._bounded.advance(token_id)

    def rollback(self, num_tokens: int) -> None:
        """As `Grammar.rollback`."""
        self.matcher.rollback(num_tokens)
        if self._bounded is not None:
            self._bounded.rollback(num_tokens)

    def forced(self) -> tuple[int, ...]:
        """As `Grammar.forced`."""
        return tuple(self.matcher.compute_ff_tokens())

    def is_finished(self) -> bool:
        """As `Grammar.is_finished`."""
        if not self.matcher.is_stopped():
            return False
        if self.matcher.is_error():
            raise self._failure()
        return True

    def _failure(self) -> GrammarError:
        reason = _first_line(self.matcher.get_error())
        return GrammarError(f"the grammar of this request gave up: {reason}.", code="grammar_limit")


def _json_grammar(schema: Any, wanted: StructuredOutputs) -> str:
    options: Any = json_options(wanted)
    return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=options))


def _as_lark(grammar: str, param: str) -> str:
    if "::=" not in grammar or grammar.startswith("start:"):
        return grammar
    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter raises nothing narrower
        raise GrammarError(f"{param} is no EBNF: {error}.", param=param) from error


def _first_line(text: str) -> str:
    """The gist of the library's report, which goes on with excerpts."""
    return " ".join(text.replace("<non-verbose/>", "").split())[:300].rstrip(".")
