"""The bytes that each token stands for, and a stream that turns tokens into text as they come.

The decoders of language models work token by token once bytes are looked at instead of characters: byte-level BPE maps
each character of a token to a byte; sentencepiece style decoders replace the metaspace and know byte tokens `<0x0A>`.
So decoding token by token is exact, and `Tokenizer.decode` and the detokenizer are the same code. Written after
https://github.com/huggingface/tokenizers/tree/v0.22.0/tokenizers/src/decoders and .../src/pre_tokenizers/byte_level.rs.

One difference, on purpose: where a run of byte tokens is not valid UTF-8, the library replaces every byte of the run
by U+FFFD, well-formed characters included. A stream has shown those already, so here only the ill-formed bytes are.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from octavo.core.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")
# Steps whose result for a token depends on nothing but whether the token is the first.
_TOKENWISE = {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace", "WordPiece"}


def _byte_level_alphabet() -> dict[str, int]:
    """Character -> byte, the table of GPT-2 (`bytes_to_unicode`)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in shown}
    hidden = [byte for byte in range(256) if byte not in set(shown)]
    return table | {chr(256 + i): byte for i, byte in enumerate(hidden)}


class Pieces:
    """Token id -> bytes, for one tokenizer. Safe to share between threads: its cache only ever grows.

    Raises:
        ModelError: the tokenizer's decoder is of a kind that cannot be streamed.
    """

    def __init__(self, backend: Backend, special_ids: frozenset[int]) -> None:
        self._backend = backend
        self._decoder = backend.decoder
        steps = _decoder_steps(backend)
        names = [step["type"] for step in steps]
        self.is_byte_level = names == ["ByteLevel"]
        self.has_byte_tokens = "ByteFallback" in names
        self.strip_char, self.strip_count = _leading_strip(steps)
        if not self.is_byte_level:
            _refuse_unknown(steps)
        self._alphabet = _byte_level_alphabet()
        self.special_ids = special_ids
        self._inner: dict[int, bytes] = {}
        self._first: dict[int, bytes] = {}

    def content(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None when there is no such token."""
        return self._backend.id_to_token(token_id) if 0 <= token_id < 2**32 else None

    def inner(self, token_id: int) -> bytes:
        """The bytes of a token inside a text; empty when there is no such token."""
        found = self._inner.get(token_id)
        if found is None:
            content = self.content(token_id)
            found = b"" if content is None else self._convert(content, is_first=False)
            self._inner[token_id] = found
        return found

    def first(self, token_id: int) -> bytes:
        """The bytes of a token that begins a text."""
        if self.is_byte_level or self.strip_count:
            return self.inner(token_id)
        found = self._first.get(token_id)
        if found is None:
            content = self.content(token_id)
            found = b"" if content is None else self._convert(content, is_first=True)
            self._first[token_id] = found
        return found

    def _convert(self, content: str, *, is_first: bool) -> bytes:
        if self.is_byte_level:
            return self._from_alphabet(content)
        byte = _BYTE_TOKEN.fullmatch(content) if self.has_byte_tokens else None
        if byte:
            return bytes([int(byte[1], 16)])
        if self._decoder is None:
            return (content if is_first else " " + content).encode()
        if is_first:
            return str(self._decoder.decode([content])).encode()
        return str(self._decoder.decode(["a", content]))[1:].encode()

    def _from_alphabet(self, content: str) -> bytes:
        # As the library does: a token with any character outside the alphabet stands for itself. An added token
        # of Latin-1 letters alone is read as bytes there too.
        values = [self._alphabet.get(char) for char in content]
        known = [value for value in values if value is not None]
        return bytes(known) if len(known) == len(values) else content.encode()


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    spec = json.loads(backend.decoder.__getstate__())
    return list(spec["decoders"]) if spec["type"] == "Sequence" else [spec]


def _leading_strip(steps: list[dict[str, Any]]) -> tuple[str, int]:
    """Which character is taken off the start of a whole text, and how often at most."""
    fused = False
    for step in steps:
        if fused and step["type"] == "Strip":
            return step["content"], step["start"]
        fused = fused or step["type"] == "Fuse"
    return "", 0


def _refuse_unknown(steps: list[dict[str, Any]]) -> None:
    fused = False
    for step in steps:
        name = step["type"]
        fails = name not in _TOKENWISE
        if fused:
            fails = name != "Strip" or step["stop"] > 0
        if fails:
            kinds = ", ".join(other["type"] for other in steps)
            raise ModelError(
                f"tokenizer.json asks for the decoder steps [{kinds}]; {name} there needs later tokens"
                " and cannot be streamed.",
                code="E-TOK-02",
                fix="Use a model whose decoder is ByteLevel, Metaspace, WordPiece or ByteFallback.",
            )
        fused = fused or name == "Fuse"


class TextStream:
    """Tokens in, text out as soon as it is certain. Owner: whoever made it; not for two threads.

    `feed` all ids, then `flush`: the texts join to what `Tokenizer.decode` returns, whatever came before.
    """

    def __init__(
        self,
        pieces: Pieces,
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
        kept_ids: frozenset[int] = frozenset(),
    ) -> None:
        self._pieces = pieces
        self._kept = kept_ids
        self._skips = skip_special_tokens
        self._joins = not (skip_special_tokens or spaces_between_special_tokens)
        # Byte tokens are replaced one by one, byte-level text by maximal ill-formed parts, as the library does.
        how = "surrogateescape" if pieces.has_byte_tokens else "replace"
        self._utf8 = codecs.getincrementaldecoder("utf-8")(how)
        self._is_first = True
        self._num_to_strip = pieces.strip_count
        self._last_is_special = False
        self._prompt_tail = b""

    def prime(self, prompt_ids: Sequence[int]) -> None:
        """Take the prompt as what stands before the text: looks at its last few tokens only."""
        tail = b""
        for token_id in reversed(prompt_ids):
            if self._is_skipped(token_id):
                continue
            self._is_first = False
            self._num_to_strip = 0
            tail = self._pieces.inner(token_id) + tail
            if len(tail) >= 3:
                break
        self._last_is_special = bool(prompt_ids) and prompt_ids[-1] in self._pieces.special_ids
        self._prompt_tail = _unfinished(tail)

    def feed(self, token_id: int) -> str:
        """The text that this token completes."""
        if self._is_skipped(token_id):
            return ""
        data = self._bytes_of(token_id)
        if self._prompt_tail and data:
            # A character begun in the prompt is finished here, or else it is no part of this text.
            if data[0] & 0xC0 == 0x80:
                self._utf8.decode(self._prompt_tail)
            self._prompt_tail = b""
        return self._clean(self._utf8.decode(data))

    def flush(self) -> str:
        """What was held back, with replacement characters for what never became whole."""
        return self._clean(self._utf8.decode(b"", True))

    def _is_skipped(self, token_id: int) -> bool:
        if token_id in self._pieces.special_ids:
            return self._skips and token_id not in self._kept
        return self._pieces.content(token_id) is None if self._is_first else False

    def _bytes_of(self, token_id: int) -> bytes:
        is_special = token_id in self._pieces.special_ids
        follows_special, self._last_is_special = self._last_is_special, is_special
        is_first, self._is_first = self._is_first, False
        if self._joins and is_special and follows_special:
            return (self._pieces.content(token_id) or "").encode()
        return self._pieces.first(token_id) if is_first else self._pieces.inner(token_id)

    def _clean(self, text: str) -> str:
        if self._pieces.has_byte_tokens and not text.isascii():
            text = _ESCAPED_BYTE.sub("\ufffd", text)
        while self._num_to_strip and text:
            if text[0] != self._pieces.strip_char:
                self._num_to_strip = 0
                break
            text = text[1:]
            self._num_to_strip -= 1
        return text


def _unfinished(tail: bytes) -> bytes:
    """The bytes at the end that begin a character and do not finish it."""
    for count in range(1, min(3, len(tail)) + 1):
        if tail[-count] >= 0xC0:
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.decode(tail[-count:])
            return decoder.getstate()[0]
    return b""
