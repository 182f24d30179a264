"""What sequences know of a step that runs and has no results yet: they go on from a token that is UNKNOWN."""

from __future__ import annotations

from collections.abc import Sequence as Ordered

from octavo.core.plan import Slice
from octavo.core.sequence import UNKNOWN, Sequence, SequenceState


def foresee(slices: Ordered[Slice], sequences: list[Sequence]) -> None:
    """Let whoever samples in these slices, and still runs, count on its token."""
    for piece, sequence in zip(slices, sequences, strict=True):
        if sequence.state is not SequenceState.RUNNING:
            continue
        sequence.num_computed = piece.start + piece.count
        if piece.sample:
            sequence.token_ids.append(UNKNOWN)
            if len(sequence.token_ids) >= sequence.most_tokens:
                sequence.num_computed += 1  # the last token ends it: nothing is left to run


def settle(piece: Slice, sequence: Sequence) -> bool:
    """Undo what was foreseen of a slice; whether its result still matters to anyone."""
    if piece.sample and sequence.token_ids[-1] == UNKNOWN:
        sequence.token_ids.pop()
    return sequence.state is not SequenceState.FINISHED
