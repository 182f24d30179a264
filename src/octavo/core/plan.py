"""One step of work, as data: frozen, without tensors, the same on every rank.

There is no "prefill" and no "decode": a decode is a slice of count 1, a chunk is any count, speculation is a count
of 1 plus drafts. Ranks keep a row per running sequence (its tokens, block table and sampling state) and a plan says
only what changed, so that its size depends on the work of the step and not on the length of contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import msgspec

from octavo.core.request import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]


class SequenceStart(msgspec.Struct, frozen=True, kw_only=True):
    """Told once, before the first slice after an admission: everything a rank has to know of a sequence."""

    row: int
    request: Request
    token_ids: tuple[int, ...]
    """Prompt, and after a preemption also the output so far."""
    blocks: tuple[tuple[int, ...], ...]
    """Per KV group: the blocks it starts with (shared prefix first). Those of the first slice are included."""
    epochs: tuple[tuple[int, ...], ...]
    """Beside `blocks`: which handing out of each block this is; 0 of the null block."""


class Slice(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Run `count` tokens of the sequence in `row`, from position `start` on.

    There is one per running sequence and step; it holds numbers alone, so the garbage collector need not follow it.
    """

    row: int
    start: int
    count: int
    sample: bool
    """Whether the last token's logits give a new token (they do when the slice ends the known tokens)."""
    new_blocks: tuple[tuple[int, ...], ...] = ()
    """Per KV group: blocks appended since the sequence's last slice. Empty for a sequence in `starts`."""
    new_epochs: tuple[tuple[int, ...], ...] = ()
    """Beside `new_blocks`: which handing out of each block this is."""
    draft: tuple[int, ...] = ()
    """Proposed tokens after the last known one, verified in this step. `count` does not include them."""


class NewBlocks(NamedTuple):
    """Slices of a step that have one new block in each KV group, as columns."""

    indices: Sequence[int]
    """Of the slices, [P]."""
    row_P: IntArray
    blocks_GP: IntArray
    epochs_GP: IntArray
    """Beside the blocks: which handing out of each this is."""


class Decodes(Sequence[Slice]):
    """The slices of a step in which each has one token, which samples: as columns, and as objects to those who ask.

    Most steps of a busy engine are of this kind, and hundreds of objects per step are what such a step would cost.
    """

    __slots__ = ("_grown", "_slices", "context", "growth", "row_S", "rows", "start_S")

    def __init__(
        self,
        rows: tuple[int, ...],
        row_S: IntArray,
        start_S: IntArray,
        context: int,
        growth: NewBlocks | None = None,
    ) -> None:
        """`rows` and `row_S` (int64) are the same objects for as long as the same sequences run in the same order, so that
        what was made of them can be used again. `context`: tokens that all attend to together. `growth`: who has new blocks.
        Nothing may be written.
        """
        self.rows = rows
        self.row_S = row_S
        self.start_S = start_S
        self.context = context
        self.growth = growth
        self._grown: Mapping[int, Slice] | None = None
        self._slices: tuple[Slice, ...] | None = None

    @property
    def slices(self) -> tuple[Slice, ...]:
        """As objects."""
        if self._slices is None:
            starts = self.start_S.tolist()
            slices = [
                Slice(row=row, start=start, count=1, sample=True)
                for row, start in zip(self.rows, starts, strict=True)
            ]
            for index, piece in self.grown.items():
                slices[index] = piece
            self._slices = tuple(slices)
        return self._slices

    @property
    def grown(self) -> Mapping[int, Slice]:
        """By index, the slices with new blocks."""
        if self._grown is None:
            self._grown = {} if self.growth is None else self._with_blocks(self.growth)
        return self._grown

    def _with_blocks(self, growth: NewBlocks) -> Mapping[int, Slice]:
        starts = self.start_S[growth.indices].tolist()
        told = zip(
            growth.indices,
            growth.row_P.tolist(),
            starts,
            growth.blocks_GP.T.tolist(),
            growth.epochs_GP.T.tolist(),
            strict=True,
        )
        return {
            index: Slice(
                row=row,
                start=start,
                count=1,
                sample=True,
                new_blocks=tuple(zip(blocks, strict=True)),
                new_epochs=tuple(zip(epochs, strict=True)),
            )
            for index, row, start, blocks, epochs in told
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Slice]:
        return iter(self.slices)

    @overload
    def __getitem__(self, index: int) -> Slice: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Slice, ...]: ...
    def __getitem__(self, index: int | slice) -> Slice | tuple[Slice, ...]:
        return self.slices[index]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Decodes | tuple):
            return NotImplemented
        return self.slices == tuple(other)

    def __hash__(self) -> int:
        return hash(self.slices)


class BlockCopy(msgspec.Struct, frozen=True):
    """Copy one block's keys and values within a group before the step runs."""

    group: int
    source: int
    target: int


class StepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What all ranks do next, in this order: forget `ended`, learn `starts`, do `copies`, run `slices`."""

    step: int
    ended: tuple[int, ...] = ()
    """Rows that are free again: finished, failed, cancelled or preempted since the last plan."""
    starts: tuple[SequenceStart, ...] = ()
    copies: tuple[BlockCopy, ...] = ()
    slices: Sequence[Slice] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model in this step."""
        if isinstance(self.slices, Decodes):
            return len(self.slices)
        return sum([piece.count + len(piece.draft) for piece in self.slices])

    @property
    def growth(self) -> NewBlocks | None:
        """The slices with new blocks where they are columns; then `grown` need not be asked."""
        return self.slices.growth if isinstance(self.slices, Decodes) else None

    @property
    def grown(self) -> Mapping[int, Slice]:
        """By index, the slices with new blocks."""
        if isinstance(self.slices, Decodes):
            return self.slices.grown
        return {index: piece for index, piece in enumerate(self.slices) if piece.new_blocks}
