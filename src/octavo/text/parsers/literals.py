"""Python literals as values that JSON can hold, read by hand: bounded, and nothing but literals."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from octavo.text.parsers.base import Malformed

MAX_DEPTH = 32
_SPACE = re.compile(r"\s*")
_NAME = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"[+-]?(\d{1,400}(\.\d{0,400})?|\.\d{1,400})([eE][+-]?\d{1,4})?")
_PLAIN = re.compile(r"[^\\'\"]+")
_HEX = {"x": 2, "u": 4, "U": 8}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": "", "/": "/"}
_WORDS: dict[str, Any] = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
}


def arguments_of(source: str) -> dict[str, Any]:
    """The arguments in `(name=value, ...)`.

    Raises:
        Malformed: they are not named literals.
    """
    reader = _Reader(source)
    reader.expect("(")
    values: dict[str, Any] = {}
    while not reader.takes(")"):
        if values:
            reader.expect(",")
            if reader.takes(")"):
                break
        name = reader.match(_NAME)
        if not name or name in values:
            raise Malformed("a call has an argument without a name, or twice")
        reader.expect("=")
        values[name] = reader.value(0)
    if reader.rest():
        raise Malformed("a call goes on behind its end")
    return values


class _Reader:
    """A place in a text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def rest(self) -> str:
        """What is left, white space aside."""
        return self._text[self._at :].strip()

    def match(self, pattern: re.Pattern[str]) -> str:
        """What matches here, behind white space; maybe nothing."""
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        found = pattern.match(self._text, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[0]

    def takes(self, char: str) -> bool:
        """Whether this character comes next; then it is read."""
        self.match(_SPACE)
        if self._text[self._at : self._at + 1] != char:
            return False
        self._at += 1
        return True

    def expect(self, char: str) -> None:
        """Read this character."""
        if not self.takes(char):
            raise Malformed(f"expected {char!r} in a call")

    def value(self, depth: int) -> Any:
        """One literal."""
        if depth > MAX_DEPTH:
            raise Malformed("a call is nested too deeply")
        for opening, closing in (("[", "]"), ("(", ")")):
            if self.takes(opening):
                return self._items(closing, depth)
        if self.takes("{"):
            return self._dict(depth)
        for quote in ("'", '"'):
            if self.takes(quote):
                return self._string(quote)
        word = self.match(_NAME)
        if word in _WORDS:
            return _WORDS[word]
        return self._number()

    def _items(self, closing: str, depth: int) -> list[Any]:
        items: list[Any] = []
        while not self.takes(closing):
            if items:
                self.expect(",")
                if self.takes(closing):
                    break
            items.append(self.value(depth + 1))
        return items

    def _dict(self, depth: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not self.takes("}"):
            if values:
                self.expect(",")
                if self.takes("}"):
                    break
            key = self.value(depth + 1)
            if not isinstance(key, str):
                raise Malformed("a dictionary has a key that is no string")
            self.expect(":")
            values[key] = self.value(depth + 1)
        return values

    def _number(self) -> int | float:
        text = self.match(_NUMBER)
        if not text:
            raise Malformed("a call has an argument that is no literal")
        if text.lstrip("+-").isdigit():
            return int(text)
        value = float(text)
        if not math.isfinite(value):
            raise Malformed("a number is too large")
        return value

    def _string(self, quote: str) -> str:
        parts: list[str] = []
        while True:
            found = _PLAIN.match(self._text, self._at)
            if found:
                parts.append(found[0])
                self._at = found.end()
            char = self._text[self._at : self._at + 1]
            self._at += 1
            if char == quote:
                return _whole("".join(parts))
            if char == "\\":
                parts.append(self._escape())
            elif char:
                parts.append(char)
            else:
                raise Malformed("a string has no end")

    def _escape(self) -> str:
        char = self._text[self._at : self._at + 1]
        self._at += 1
        if char in _HEX:
            digits = self._text[self._at : self._at + _HEX[char]]
            if len(digits) == _HEX[char] and all(c in "0123456789abcdefABCDEF" for c in digits):
                self._at += len(digits)
                code = int(digits, 16)
                return chr(code) if code <= 0x10FFFF else "\ufffd"
        if char in _ESCAPES:
            return _ESCAPES[char]
        # As Python has it: an escape that it does not know stands for itself.
        return char if char in ("\\", "'", '"') else f"\\{char}"


def _whole(text: str) -> str:
    """Halves of surrogate pairs joined, or replaced: no UTF-8 text can hold them."""
    if text.isascii():
        return text
    joined: str = json.loads(json.dumps(text))
    return joined.encode("utf-8", "replace").decode()
