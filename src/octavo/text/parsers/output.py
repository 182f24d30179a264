"""One output's text and tokens to pieces: reasoning first, then content and tool calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from octavo.text.parsers.base import Piece, ReasoningFormat, Steps, ToolFormat, Tools
from octavo.text.parsers.calls import all_content
from octavo.text.parsers.scan import Scanner


class Formats(NamedTuple):
    """How one model writes; None where it is not known or not looked for."""

    reasoning: ReasoningFormat | None = None
    tools: ToolFormat | None = None

    def markers(self) -> frozenset[str]:
        """All that delimits."""
        found: set[str] = set()
        if self.reasoning is not None:
            found |= {*self.reasoning.starts, *self.reasoning.ends, *self.reasoning.markers}
        if self.tools is not None:
            found |= set(self.tools.markers)
        return frozenset(found)


class OutputParser:
    """Splits one output as it streams. Owner: whoever reads the request's deltas.

    `special_markers` are the markers that are special tokens, by id: these alone count, not text that is spelled like
    them. The pieces of all pushes and of `finish` say the same however the output was cut. No text raises.
    """

    def __init__(
        self,
        formats: Formats,
        tools: Tools,
        *,
        is_open: bool = False,
        special_markers: Mapping[int, str] | None = None,
    ) -> None:
        self._special_markers = special_markers or {}
        self._scanner = Scanner(frozenset(self._special_markers.values()))
        self._steps = _parse(self._scanner, formats, tools, is_open)
        self._is_done = False
        self._offsets: deque[int] = deque()
        self._num_regions = 0
        self._is_reasoning = False
        self.num_reasoning_tokens = 0
        """Tokens that begin within the reasoning, its markers left out."""

    def push(
        self, text: str, offsets: Iterable[int] = (), marks: Iterable[tuple[int, int]] = ()
    ) -> list[Piece]:
        """Take the next text. `offsets`: where each of its tokens begins; `marks`: where special tokens do, and their ids."""
        self._offsets.extend(offsets)
        found = self._special_markers
        self._scanner.feed(text, [(at, found[i]) for at, i in marks if i in found])
        return self._go_on()

    def finish(self) -> list[Piece]:
        """The output is over: what was held back."""
        self._scanner.is_over = True
        return self._go_on()

    def content_spans(self) -> list[tuple[int, int]]:
        """From where to where in the output the content stands that was told since this was last asked, in characters."""
        spans, self._scanner.content_spans = self._scanner.content_spans, []
        return spans

    def _go_on(self) -> list[Piece]:
        if not self._is_done:
            try:
                next(self._steps)
            except StopIteration:
                self._is_done = True
        pieces, self._scanner.pieces = self._scanner.pieces, []
        self._count()
        return _joined(pieces)

    def _count(self) -> None:
        """Tokens whose beginning is read are of one kind or the other for good."""
        scanner = self._scanner
        while self._offsets and (self._offsets[0] < scanner.consumed or scanner.is_over):
            offset = self._offsets.popleft()
            while (
                self._num_regions < len(scanner.regions)
                and scanner.regions[self._num_regions][0] <= offset
            ):
                self._is_reasoning = scanner.regions[self._num_regions][1]
                self._num_regions += 1
            self.num_reasoning_tokens += self._is_reasoning


def _parse(scanner: Scanner, formats: Formats, tools: Tools, is_open: bool) -> Steps[None]:
    reasoning, calls = formats
    if reasoning is not None and reasoning.is_whole:
        yield from reasoning.parse(scanner, tools)
        return
    if reasoning is not None and not (calls is not None and calls.is_whole):
        yield from reasoning.parse(scanner, is_open)
    if calls is not None and (tools or calls.is_whole):
        yield from calls.parse(scanner, tools)
    yield from all_content(scanner)


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same with neighbours of one kind made one."""
    joined: list[Piece] = []
    for piece in pieces:
        if joined and joined[-1].kind == piece.kind and piece.kind in _RUNS:
            joined[-1] = Piece(piece.kind, joined[-1].text + piece.text)
        else:
            joined.append(piece)
    return joined


_RUNS = ("content", "reasoning", "arguments")
