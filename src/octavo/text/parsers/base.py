"""What a parser of model output is made of: pieces out, formats as rows of two registries.

A format is a generator over a `Scanner`: it says what it expects next and is suspended where the text ends so far. So
the pieces of an output depend on its text alone, not on how it was cut, and a whole answer is parsed by the very code
that parses a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import msgspec

T = TypeVar("T")

Steps = Generator[None, None, T]
"""A parser in progress: yields when it needs more text."""

Kind = Literal["content", "reasoning", "call", "arguments", "end", "flaw"]


class Piece(NamedTuple):
    """What some output text turned out to be.

    `content` and `reasoning` are text. `call` begins a tool call and holds its name, `arguments` are the next
    characters of its arguments, `end` ends it. `flaw` says in words what could not be parsed; that text is content, or
    arguments where a call had begun.
    """

    kind: Kind
    text: str = ""


class Tool(NamedTuple):
    """A function that the model may call."""

    name: str
    parameters: Mapping[str, Any]
    """JSON schema of its arguments."""
    is_strict: bool = False
    """Whether arguments must follow the schema even where the model is free to call or not."""


Tools = Mapping[str, Tool]
"""By name; empty when calls are not looked for."""


class Malformed(Exception):  # noqa: N818  # not an error of the program: it never leaves this folder
    """Text that is not what its format says."""


class Demand(NamedTuple):
    """Calls that the output must consist of, for a grammar."""

    tools: tuple[Tool, ...]
    is_parallel: bool
    """Whether there may be more than one."""
    special_id: Callable[[str], int | None]
    """The id of a marker that is a special token; None for one that is written as text."""
    lead: str = ""
    """What stands for the marker that begins a call, where text may come before it."""


class Rules(NamedTuple):
    """A piece of a Lark grammar, in llguidance's dialect."""

    start: str
    """An expression."""
    rules: tuple[str, ...]
    """The rules that it needs."""


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes tool calls."""

    parse: Callable[..., Steps[None]]
    """`parse(scanner, tools)`: all of the output that follows the reasoning."""
    markers: tuple[str, ...]
    """What delimits calls. One that is a special token of the vocabulary is that token alone, never its spelling."""
    claims: Callable[[str], bool]
    """Whether a chat template teaches this format, beyond doubt."""
    demand: Callable[[Demand], Rules]
    """The grammar of nothing but calls."""
    trigger: str = ""
    """The text or token with which every call begins; empty where calls cannot be told by it."""
    new_id: Callable[[], str] | None = None
    """Makes the id of a call, where the chat template is particular about it."""
    is_whole: bool = False
    """Whether `parse` takes all of the output, reasoning included."""


class ReasoningFormat(msgspec.Struct, frozen=True, kw_only=True):
    """How a family of models writes its reasoning."""

    parse: Callable[..., Steps[None]]
    """`parse(scanner, is_open)`, which ends where the reasoning does; `parse(scanner, tools)` when `is_whole`."""
    starts: tuple[str, ...]
    """What opens the reasoning; the first is the one to look for in a prompt."""
    ends: tuple[str, ...]
    claims: Callable[[str], bool]
    """Whether a chat template shows this format, beyond doubt."""
    markers: tuple[str, ...] = ()
    """Those beside `starts` and `ends`."""
    is_whole: bool = False
