"""What a parser of model output is: text in, reasoning, tool calls and content out."""

from __future__ import annotations

from typing import Protocol

import msgspec


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of one tool call, in the order of the stream."""

    index: int
    name: str | None = None
    """Set in the first piece of a call."""
    arguments: str = ""
    """The next characters of the arguments' JSON."""


class ParsedDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What some output text turned out to be."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class OutputParser(Protocol):
    """Splits one request's output as it streams. One instance per request."""

    def push(self, text: str) -> ParsedDelta:
        """Take the next text delta."""
        ...

    def finish(self) -> ParsedDelta:
        """The output is over: what was held back."""
        ...
