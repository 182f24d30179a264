"""Masks within JSON strings that are bounded in length and by nothing else, put together instead of searched for.

Within such a string of which n characters are left, a token of plain characters is allowed if it has n at most. The library
walks each of the 100,000 that have more up to its n-th character: milliseconds. Here they are looked up: a table has
the plain tokens by their length, and a second matcher, over a vocabulary without them, finds the others: those with a
quote, an escape, a control character or a part of a character.

How many characters are left is asked of the first matcher, which is told no token for it: so many times
`strings.STRANGE` can follow. Where the schema's strings are told apart (`strings.are_told_apart`), it can only in a string whose
characters are counted and not looked at. Both ways give the same bits (`tests/unit/decoding/test_bounded.py`).

Shape letters: W words of 32 tokens, L lengths.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance._tokenizer import TokenizerWrapper

from octavo.decoding.grammar.base import WordArray
from octavo.decoding.grammar.strings import STRANGE, are_told_apart

LEAST_VOCABULARY = 32_768
"""Below, the library's masks take less than half a millisecond and asking is not worth its 2 us."""
MOST_LEFT = 128
"""Where more characters are left, few tokens are too long."""
_SOON = 24
"""What is asked before it is asked for all."""
_UNKNOWN = -1
_PLAIN = r'[^"\\\x00-\x1F\x7F]+'
"""What stands for itself in a JSON string."""
_NEVER = re.compile(rb'[^"\\\x00-\x1F]*[\x00-\x1F]')
"""How no token begins that a string goes on with."""
_UTF8 = frozenset(range(0xF5)) - {0xC0, 0xC1}
_UNSATISFIABLE = "Unsatisfiable schema"


class PlainTokens:
    """What does not change between grammars of one vocabulary."""

    def __init__(self, tokenizer: LLTokenizer, bounds: LLParserLimits) -> None:
        self._tokenizer = tokenizer
        self._bounds = bounds
        tokens = [_bytes_of(tokenizer, token_id) for token_id in range(tokenizer.vocab_size)]
        self._byte_ids = {token[0]: n for n, token in enumerate(tokens) if len(token) == 1}
        self.is_usable = self._byte_ids.keys() >= _UTF8
        """Whether the vocabulary has all bytes: to ask with, and to spell with."""
        self.strange = self._spelled(STRANGE.encode()) if self.is_usable else []
        lengths = self._lengths(tokens)
        self.upto_LW = np.stack(
            [_packed((lengths > 0) & (lengths <= n)) for n in range(MOST_LEFT + 1)]
        )
        """Plain tokens of at most so many characters."""
        self.lengths: list[int] = lengths.tolist()
        """Characters of a plain token; 0 for all others."""
        self._is_spelled = [
            len(token) > 1 and (length > 0 or (_NEVER.match(token) and _is_text(token)))
            for token, length in zip(tokens, self.lengths, strict=True)
        ]
        """Of a token: whether the second vocabulary is without it."""
        self._rest = self._without(tokens)

    def pieces(self, token_id: int) -> list[int]:
        """A token in tokens of the second vocabulary."""
        if not self._is_spelled[token_id]:
            return [token_id]
        return self._spelled(self._tokenizer.decode_bytes([token_id]))

    def matcher(self, source: str, whitespace: tuple[str, ...]) -> LLMatcher | None:
        """Of a grammar, over the second vocabulary; None where its masks have to be searched for. `whitespace`: the
        patterns of it that hold nothing of a string.
        """
        schema = _schema_of(source, whitespace) if self.is_usable else None
        if schema is None or not are_told_apart(schema, self._takes_strange):
            return None
        found = LLMatcher(self._rest, source, log_level=0, limits=self._bounds)
        return None if found.is_error() else found

    def _takes_strange(self, schema: Any) -> bool:
        both = json.dumps({"allOf": [schema, {"type": "string", "pattern": STRANGE}]})
        source = LLMatcher.grammar_from_json_schema(both)
        matcher = LLMatcher(self._rest, source, log_level=0, limits=self._bounds)
        return not (matcher.is_error() and matcher.get_error().startswith(_UNSATISFIABLE))

    def _lengths(self, tokens: list[bytes]) -> np.ndarray:
        """Characters of the plain tokens, of those that the library would choose; 0 for all others."""
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_regex(_PLAIN), log_level=0)
        allowed = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        ids = np.flatnonzero(np.unpackbits(allowed, bitorder="little")[: len(tokens)])
        lengths = np.zeros(len(tokens), np.int64)
        for n in ids.tolist():
            if _is_text(tokens[n]):
                lengths[n] = len(tokens[n].decode())
        return lengths

    def _spelled(self, text: bytes) -> list[int]:
        return [self._byte_ids[each] for each in text]

    def _without(self, tokens: list[bytes]) -> LLTokenizer:
        """A vocabulary of the same numbers in which the tokens that can be spelled are not."""
        end = self._tokenizer.eos_token

        class Rest:
            """What the library's wrapper asks for."""

            eos_token_id = end
            bos_token_id = None
            special_token_ids = (end,)

            def __call__(self, text: bytes) -> list[int]:
                return []

        rest: Any = Rest()
        rest.tokens = [
            b"" if is_spelled else token
            for token, is_spelled in zip(tokens, self._is_spelled, strict=True)
        ]
        rest.tokens[end] = b"<end>"
        wrapped: Any = TokenizerWrapper(rest)
        return LLTokenizer(wrapped, n_vocab=len(tokens), eos_token=end, slices=[])


class BoundedStrings:
    """One request's second matcher, which is told of tokens when it is asked."""

    def __init__(self, plain: PlainTokens, matcher: LLMatcher) -> None:
        self._plain = plain
        self._matcher = matcher
        self._ask = [plain.strange * count for count in (1, _SOON, MOST_LEFT + 1)]
        self._token_ids: list[int] = []
        self._num_told = 0
        self._left = _UNKNOWN
        """How many characters the string may go on for, 0 outside of one that takes any."""
        self._is_more = False
        """Whether there may be more of them."""

    def advance(self, token_id: int) -> None:
        """Take note of a token that the first matcher took."""
        self._token_ids.append(token_id)
        length = self._plain.lengths[token_id]
        # A plain token begins no string and ends none.
        least = MOST_LEFT // 2 if self._is_more else 0
        if not length or 0 < self._left < length + least:
            self._left = _UNKNOWN
        elif self._left > 0:
            self._left -= length

    def rollback(self, num_tokens: int) -> None:
        """Forget the last tokens."""
        self._left = _UNKNOWN
        del self._token_ids[len(self._token_ids) - num_tokens :]
        if self._num_told > len(self._token_ids):
            self._matcher.reset()
            self._num_told = 0

    def mask(self, first: LLMatcher, words_W: WordArray) -> bool:
        """Write the mask, if this is within a string of which few characters are left."""
        if self._left == _UNKNOWN:
            self._left = self._ask_how_many(first)
            self._is_more = self._left > MOST_LEFT
        if not self._left or self._is_more:
            return False
        plain = self._plain
        news = self._token_ids[self._num_told :]
        pieces = [piece for token_id in news for piece in plain.pieces(token_id)]
        if pieces and not self._matcher.consume_tokens(pieces):
            return False
        self._num_told = len(self._token_ids)
        place: int = words_W.__array_interface__["data"][0]
        self._matcher.unsafe_compute_mask_ptr(place, words_W.nbytes)
        if self._matcher.is_error():
            return False
        words_W |= plain.upto_LW[self._left]
        return True

    def _ask_how_many(self, first: LLMatcher) -> int:
        """What `_left` is, up to one more than the table has."""
        for ask in self._ask:
            taken: int = first.validate_tokens(ask)
            if taken < len(ask):
                left, over = divmod(taken, len(self._ask[0]))
                return 0 if over else left
        return MOST_LEFT + 1


def _bytes_of(tokenizer: LLTokenizer, token_id: int) -> bytes:
    """Nothing for tokens that are no text."""
    return (
        b"" if tokenizer.is_special_token(token_id) else bytes(tokenizer.decode_bytes([token_id]))
    )


def _is_text(token: bytes) -> bool:
    """Whether it begins and ends with whole characters."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def _packed(is_allowed: np.ndarray) -> WordArray:
    bits = np.zeros(-(-len(is_allowed) // 32) * 32, np.bool_)
    bits[: len(is_allowed)] = is_allowed
    return np.packbits(bits, bitorder="little").view(np.uint32)


def _schema_of(source: str, whitespace: tuple[str, ...]) -> Any:
    """The schema that a grammar is all made of; None for another grammar."""
    if not source.startswith("{"):
        return None
    grammars = json.loads(source).get("grammars", ())
    if len(grammars) != 1 or not isinstance(grammars[0].get("json_schema"), dict):
        return None
    schema = grammars[0]["json_schema"]
    options = schema.pop("x-guidance", {})
    if options == {"whitespace_flexible": False}:
        return schema
    is_known = (
        options.keys() == {"whitespace_pattern"} and options["whitespace_pattern"] in whitespace
    )
    return schema if is_known else None
