"""Pieces of an output in blocks: a text, a stretch of reasoning, a tool call, one after the other.

Endpoints that answer with a list of items write these; a whole answer is what the last block has become.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from octavo.text.parsers.base import Piece

BlockKind = Literal["content", "reasoning", "call"]


@dataclass(slots=True, kw_only=True)
class Block:
    """One block as far as it has come. Owner: `Blocks`."""

    kind: BlockKind
    index: int
    name: str = ""
    """Of a call."""
    flaw: str = ""
    """Why a call's arguments are not JSON."""
    is_over: bool = False
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """The text, or the call's arguments, so far."""
        return "".join(self.parts)


class Change(NamedTuple):
    """What happened to a block."""

    what: Literal["begin", "delta", "end"]
    block: Block
    text: str = ""


class Blocks:
    """All blocks of one output. Owner: whoever writes the answer."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self.flaw = ""
        """The first thing that could not be parsed."""

    def take(self, pieces: Iterable[Piece]) -> Iterator[Change]:
        """What some pieces change. Look at each change before the next is asked for: blocks go on growing."""
        for kind, text in pieces:
            if kind == "flaw":
                self._flaw(text)
            elif kind == "end":
                yield from self.end()
            elif kind == "call":
                yield from self.end()
                yield self._begin("call", text)
            elif kind == "arguments":
                yield self._add(text)
            else:
                if self._open is None or self._open.kind != kind:
                    yield from self.end()
                    yield self._begin(kind)
                yield self._add(text)

    def end(self) -> Iterator[Change]:
        """The open block ends, if there is one."""
        block = self._open
        if block is not None:
            block.is_over = True
            yield Change("end", block)

    @property
    def _open(self) -> Block | None:
        return self.all[-1] if self.all and not self.all[-1].is_over else None

    def _begin(self, kind: BlockKind, name: str = "") -> Change:
        self.all.append(Block(kind=kind, index=len(self.all), name=name))
        return Change("begin", self.all[-1])

    def _add(self, text: str) -> Change:
        block = self.all[-1]
        block.parts.append(text)
        return Change("delta", block, text)

    def _flaw(self, reason: str) -> None:
        self.flaw = self.flaw or reason
        if self._open is not None and self._open.kind == "call":
            self._open.flaw = reason
