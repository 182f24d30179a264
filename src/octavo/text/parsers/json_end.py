"""Finds where one JSON value ends, in text that comes in parts.

Looks at brackets and strings alone: JSON that is wrong inside still has an end, so a call with a comma too many is
still told from the text behind it.
"""

from __future__ import annotations

import re

_MAX_DEPTH = 128
_MAX_SCALAR_CHARS = 512
_CLOSES = {"{": "}", "[": "]"}
_STRUCTURE = re.compile(r'["{}\[\]]')
_STRING = re.compile(r'["\\]')
_SCALAR_END = re.compile(r"[,}\]\s]")
_SCALAR = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?|true|false|null")


class JsonEnd:
    """The state of one value. Owner: whoever reads it."""

    def __init__(self) -> None:
        self.is_done = False
        self.flaw = ""
        """Why the character behind what was read cannot belong to JSON."""
        self._open: list[str] = []
        self._in_string = False
        self._is_escaped = False
        self._scalar: str | None = None

    @property
    def is_whole_scalar(self) -> bool:
        """Whether what was read is a number or a word of JSON, which nothing but its neighbour ends."""
        return self._scalar is not None and bool(_SCALAR.fullmatch(self._scalar))

    def feed(self, text: str) -> int:
        """Read on; how many characters belong to the value."""
        position = 0
        while position < len(text) and not (self.is_done or self.flaw):
            position = self._step(text, position)
        return position

    def _step(self, text: str, position: int) -> int:
        if self._in_string:
            return self._string(text, position)
        if self._scalar is not None or (not self._open and text[position] not in '"{['):
            return self._bare(text, position)
        found = _STRUCTURE.search(text, position)
        if found is None:
            return len(text)
        char = found[0]
        if char == '"':
            self._in_string = True
        elif char in _CLOSES:
            if len(self._open) == _MAX_DEPTH:
                self.flaw = "JSON is nested too deeply"
                return found.start()
            self._open.append(_CLOSES[char])
        elif self._open[-1] != char:
            self.flaw = f"JSON closes with {char!r} what it did not open"
            return found.start()
        else:
            self._open.pop()
        self.is_done = not self._open and not self._in_string
        return found.end()

    def _string(self, text: str, position: int) -> int:
        if self._is_escaped:
            self._is_escaped = False
            return position + 1
        found = _STRING.search(text, position)
        if found is None:
            return len(text)
        if found[0] == "\\":
            self._is_escaped = True
        else:
            self._in_string = False
            self.is_done = not self._open
        return found.end()

    def _bare(self, text: str, position: int) -> int:
        found = _SCALAR_END.search(text, position)
        end = found.start() if found else len(text)
        most = position + _MAX_SCALAR_CHARS - len(self._scalar or "")
        self._scalar = (self._scalar or "") + text[position : min(end, most)]
        if most < end:
            self.flaw = "a number or a word is too long"
        elif found:
            self.is_done = self.is_whole_scalar
            self.flaw = "" if self.is_done else "expected JSON"
        return min(end, most)
