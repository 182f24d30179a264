"""The text of one output as far as it has come, and how a format reads it.

Nothing that is read is lost: it becomes a piece, or layout (white space beside a marker), or the text of a call. What
was read since `hold` comes back as content when it turns out malformed.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from octavo.text.parsers.base import Kind, Malformed, Piece, Steps
from octavo.text.parsers.json_end import JsonEnd

MAX_NAME_CHARS = 256
_MAX_LAYOUT_CHARS = 256
"""White space beside a marker is layout up to so many characters; more of it is content."""
_SPACE = " \t\r\n"

Layout = Literal["all", "line", "none"]
"""Which white space between markers and text is not part of the text."""


class Scanner:
    """Owner: the `OutputParser` of one output. A format's generator reads it and makes pieces.

    `tokens_only` are the markers that only a special token stands for.
    """

    def __init__(self, tokens_only: frozenset[str] = frozenset()) -> None:
        self.pieces: list[Piece] = []
        self.is_over = False
        """Set when no more text will come."""
        self.consumed = 0
        """Characters read so far."""
        self.regions: list[tuple[int, bool]] = []
        """Where reasoning begins (True) and ends (False), in characters."""
        self.content_spans: list[tuple[int, int]] = []
        """From where to where content stands that was found since the list was last taken, in characters."""
        self._tokens_only = tokens_only
        self._text = ""
        self._marks: deque[tuple[int, str]] = deque()
        self._skips: Layout = "none"
        self._layout = ""
        self._held: list[str] | None = None
        self._arguments: list[str] | None = None

    def feed(self, text: str, marks: Iterable[tuple[int, str]] = ()) -> None:
        """More text. `marks` are the special tokens among the markers: where each begins, and its text."""
        self._text += text
        self._marks.extend(marks)

    # What a format asks for.

    def until(
        self, markers: tuple[str, ...], put: Callable[[str], None], layout: Layout = "all"
    ) -> Steps[str]:
        """Pass text on up to the next of the markers; returns that marker, or "" at the end of the output."""
        self._skips = layout if self._skips != "none" else "none"
        while True:
            at, marker = self._find(markers)
            if marker:
                end = at - self._num_trailing(at, layout)
                self._pass_on(end, put)
                self._layout = self._take(at - end)
                self._take(len(marker))
                self._skips = "all"
                return marker
            if self.is_over:
                self._pass_on(len(self._text), put)
                return ""
            safe = self._num_safe(markers)
            self._pass_on(safe - self._num_trailing(safe, layout), put)
            yield

    def at(self, markers: tuple[str, ...]) -> Steps[str]:
        """Take the marker that comes next, after white space; "" when none of them does."""
        while True:
            self._skip_space()
            self._drop_marks()
            found = max((m for m in markers if self._begins(m)), key=len, default="")
            texts = [m for m in markers if m not in self._tokens_only and len(m) > len(found)]
            # An empty text is the beginning of every marker, of a token's too.
            is_open = not self._text or any(text.startswith(self._text) for text in texts)
            if self.is_over or not (is_open or self._awaits_mark()):
                self._take(len(found))
                return found
            yield

    def peek(self) -> Steps[str]:
        """The next character after white space, which stays; "" at the end of the output or before a marker token."""
        while True:
            self._skip_space()
            if self._marks_at_start():
                return ""
            if self._text:
                return self._text[0]
            if self.is_over:
                return ""
            yield

    def expect(self, char: str) -> Steps[None]:
        """Take this character, after white space. Raises Malformed."""
        found = yield from self.peek()
        if found != char:
            raise Malformed(f"expected {char!r}, found {found or 'the end'!r}")
        self._take(1)

    def word(self, extra: str = "_.-") -> Steps[str]:
        """Letters, digits and `extra`, after white space, at most MAX_NAME_CHARS. Raises Malformed when there are none."""
        yield from self.peek()
        parts = ""
        while True:
            run = self._plain()
            count = next(
                (i for i, c in enumerate(run) if not (c.isalnum() or c in extra)), len(run)
            )
            parts += self._take(min(count, MAX_NAME_CHARS + 1 - len(parts)))
            if len(parts) > MAX_NAME_CHARS:
                raise Malformed("a name is too long")
            if count < len(run) or self.is_over or self._marks_at_start():
                if not parts:
                    raise Malformed("a name is missing")
                return parts
            yield

    def string(self, most: int = MAX_NAME_CHARS) -> Steps[str]:
        """A JSON string, after white space: what it stands for. Raises Malformed."""
        if (yield from self.peek()) != '"':
            raise Malformed("expected a string")
        parts: list[str] = []
        yield from self.value(parts.append, most)
        try:
            return str(json.loads("".join(parts), strict=False))
        except ValueError as error:
            raise Malformed("a string is not valid JSON") from error

    def value(self, put: Callable[[str], None], most: int | None = None) -> Steps[None]:
        """Pass on one JSON value as it is written, after white space. Raises Malformed."""
        yield from self.peek()
        end, size = JsonEnd(), 0
        while True:
            plain = self._plain() if most is None else self._plain()[: most - size]
            taken = self._take(end.feed(plain))
            size += len(taken)
            if taken:
                put(taken)
            if end.is_done:
                return
            if end.flaw or size == most:
                raise Malformed(end.flaw or "a string is too long")
            if (self.is_over and not self._text) or self._marks_at_start():
                if end.is_whole_scalar:
                    return
                raise Malformed("JSON ends too early")
            yield

    def run(
        self, feed: Callable[[str], tuple[int, bool]], put: Callable[[str], None], most: int
    ) -> Steps[None]:
        """Pass text on as long as `feed` says: how many characters, and whether that is the end. Raises Malformed."""
        size = 0
        while True:
            count, is_done = feed(self._plain()[: most - size])
            size += count
            put(self._take(count))
            if is_done:
                return
            if self.is_over or self._marks_at_start() or size == most:
                raise Malformed("text ends too early, or is too long")
            yield

    def rest(self) -> Steps[bool]:
        """Whether there is more text."""
        while not self._text:
            if self.is_over:
                return False
            yield
        return True

    # Pieces.

    def content(self, text: str) -> None:
        """Text of the answer: the last of what was read."""
        start, spans = self.consumed - len(text), self.content_spans
        if spans and spans[-1][1] == start:
            start = spans.pop()[0]
        spans.append((start, self.consumed))
        self._add("content", text)

    def reasoning(self, text: str) -> None:
        """Text of the reasoning."""
        self._add("reasoning", text)

    def begin_reasoning(self) -> None:
        """Tokens from here on are reasoning."""
        self.regions.append((self.consumed, True))

    def end_reasoning(self, marker: str = "") -> None:
        """They were, up to the marker just taken."""
        self.regions.append((self.consumed - len(marker), False))

    def hold(self, marker: str = "") -> None:
        """From the marker just taken on, what is read may come back as content."""
        self._held = [self._layout, marker] if marker else []
        self._layout = ""

    def begin_call(self, name: str) -> None:
        """A call begins: what was held is parsed. From here on what is no argument is held."""
        self._held = []
        self._arguments = []
        self.pieces.append(Piece("call", name))

    def arguments(self, text: str) -> None:
        """The next characters of the call's arguments."""
        assert self._arguments is not None, "a format adds arguments inside a call"
        self._arguments.append(text)
        self._held = []
        self._add("arguments", text)

    def end_call(self, flaw: str = "") -> None:
        """The call ends. Arguments that are no JSON object are a flaw."""
        assert self._arguments is not None, "a format ends the call that it began"
        flaw = flaw or _flaw_of("".join(self._arguments))
        self._arguments = None
        self._held = []
        self._skips = "all"
        if flaw:
            self.flaw(flaw)
        self.pieces.append(Piece("end"))

    def flaw(self, reason: str) -> None:
        """Something could not be parsed."""
        self.pieces.append(Piece("flaw", reason))

    @property
    def is_in_call(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._arguments is not None

    def give_back(self, reason: str) -> None:
        """What is held is content after all."""
        held = "".join(self._held or ())
        self._held = None
        self._skips = "none"
        if held.strip(_SPACE):
            self.content(held)
            self.flaw(reason)

    def recover(self, flaw: Malformed, ends: tuple[str, ...]) -> Steps[None]:
        """After malformed text: a call that began takes all up to the next of `ends`, else it is content."""
        if not self.is_in_call:
            self.give_back(str(flaw))
            return
        self._skips = "none"
        self.arguments("".join(self._held or ()))
        yield from self.until(ends, self.arguments, "line")
        self.end_call(str(flaw))
        self._held = None

    def unread(self) -> None:
        """What is held was not looked at after all: the next to read has it before it."""
        held = "".join(self._held or ())
        self._held = None
        self._text = held + self._text
        self.consumed -= len(held)

    def skip_layout(self) -> None:
        """White space that comes next is layout."""
        self._skips = "all"

    def release(self) -> None:
        """What was held is parsed: forget its text."""
        self._held = None

    # Text.

    def _add(self, kind: Kind, text: str) -> None:
        if text:
            self.pieces.append(Piece(kind, text))

    def _take(self, count: int) -> str:
        taken, self._text = self._text[:count], self._text[count:]
        self.consumed += count
        if self._held is not None and taken:
            self._held.append(taken)
        return taken

    def _skip_space(self) -> None:
        run = self._plain()
        self._take(len(run) - len(run.lstrip(_SPACE)))

    def _pass_on(self, count: int, put: Callable[[str], None]) -> None:
        text = self._text[:count]
        self._take(count)
        if self._skips == "all":
            text = text.lstrip(_SPACE)
        elif self._skips == "line" and text[:1] == "\n":
            text, self._skips = text[1:], "none"
        if text:
            self._skips = "none"
            put(text)

    def _num_trailing(self, end: int, layout: Layout) -> int:
        """How many of the characters before `end` may be layout in front of a marker."""
        if layout == "all":
            start = max(0, end - _MAX_LAYOUT_CHARS)
            return end - max(start, len(self._text[:end].rstrip(_SPACE)))
        return int(layout == "line" and end > 0 and self._text[end - 1] == "\n")

    # Markers.

    def _drop_marks(self) -> None:
        while self._marks and self._marks[0][0] < self.consumed:
            self._marks.popleft()

    def _plain(self) -> str:
        """The text up to the next marker token."""
        self._drop_marks()
        if not self._marks:
            return self._text
        return self._text[: self._marks[0][0] - self.consumed]

    def _marks_at_start(self) -> bool:
        self._drop_marks()
        return bool(self._marks) and self._marks[0][0] == self.consumed

    def _awaits_mark(self) -> bool:
        """Whether a marker token stands next whose text has not all come."""
        return self._marks_at_start() and len(self._text) < len(self._marks[0][1])

    def _begins(self, marker: str) -> bool:
        if marker in self._tokens_only and not (
            self._marks_at_start() and self._marks[0][1] == marker
        ):
            return False
        return self._text.startswith(marker)

    def _find(self, markers: tuple[str, ...]) -> tuple[int, str]:
        """Where the first of the markers stands, the longest of those that begin there."""
        self._drop_marks()
        found: list[tuple[int, int, str]] = []
        for marker in markers:
            if marker not in self._tokens_only:
                at = self._text.find(marker)
                if at >= 0:
                    found.append((at, -len(marker), marker))
        for position, text in self._marks:
            at = position - self.consumed
            if text in markers and self._text.startswith(text, at):
                found.append((at, -len(text), text))
                break
        if not found:
            return -1, ""
        at, _, marker = min(found)
        return at, marker

    def _num_safe(self, markers: tuple[str, ...]) -> int:
        """Up to where the text cannot be the beginning of a marker."""
        text = self._text
        safe = len(text)
        for marker in markers:
            if marker in self._tokens_only:
                continue
            for count in range(min(len(marker) - 1, len(text)), 0, -1):
                if text.endswith(marker[:count]):
                    safe = min(safe, len(text) - count)
                    break
        for position, name in self._marks:
            if name in markers:
                return min(safe, position - self.consumed)
        return safe


def _flaw_of(arguments: str) -> str:
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return "the arguments are not valid JSON"
    return "" if isinstance(value, dict) else "the arguments are not a JSON object"
