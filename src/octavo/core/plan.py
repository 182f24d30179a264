"""One step of work, as data: frozen, without tensors, the same on every rank.

There is no "prefill" and no "decode": a decode is a slice of count 1, a chunk is any count, speculation is a count
of 1 plus drafts. Ranks keep a row per running sequence (its tokens, block table and sampling state) and a plan says
only what changed, so that its size depends on the work of the step and not on the length of contexts.
"""

from __future__ import annotations

import msgspec

from octavo.core.request import Request


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
    slices: tuple[Slice, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model in this step."""
        return sum([piece.count + len(piece.draft) for piece in self.slices])
