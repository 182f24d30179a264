"""Bias, penalties and bans on the device: what `decoding/penalties.py: apply_edits` does, in its order, to a step's logits.

One program per edited row walks that row's lists. Shape letters: N entries, V vocabulary, E edited rows, I ids of all
lists.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

COLUMNS = 5
"""Of a row of the table: the entry, and where its bias, its tally, its bans begin and its bans end."""
_SPAN = 1024


@triton.jit
def edit(
    logits, table, penalties, ids, values, vocab, SPAN: tl.constexpr, COLUMNS: tl.constexpr
):  # fmt: skip
    """Edit a row in place. `values` has the bias or the count of each id; ids of one list are distinct.

    Compiled without fused multiply-adds: each step is rounded as torch rounds it.
    """
    table += tl.program_id(0) * COLUMNS
    logits += tl.load(table) * vocab
    bias, tally = tl.load(table + 1), tl.load(table + 2)
    bans, end = tl.load(table + 3), tl.load(table + 4)
    for start in range(bias, tally, SPAN):
        at_S = start + tl.arange(0, SPAN)
        id_S = tl.load(ids + at_S, mask=at_S < tally, other=0)
        x_S = tl.load(logits + id_S, mask=at_S < tally, other=0)
        x_S += tl.load(values + at_S, mask=at_S < tally, other=0)
        tl.store(logits + id_S, x_S, mask=at_S < tally)
    # A token may be in several lists, and then another thread goes on with what this one wrote.
    tl.debug_barrier()
    penalties += tl.program_id(0) * 3
    repetition, frequency = tl.load(penalties), tl.load(penalties + 1)
    presence = tl.load(penalties + 2)
    for start in range(tally, bans, SPAN):
        at_S = start + tl.arange(0, SPAN)
        id_S = tl.load(ids + at_S, mask=at_S < bans, other=0)
        x_S = tl.load(logits + id_S, mask=at_S < bans, other=0)
        count_S = tl.load(values + at_S, mask=at_S < bans, other=0)
        factor_S = repetition + tl.zeros_like(x_S)
        x_S = tl.where(x_S > 0, tl.div_rn(x_S, factor_S), x_S * factor_S)
        x_S = x_S - frequency * count_S
        x_S = x_S - tl.where(count_S > 0, presence, 0.0)
        tl.store(logits + id_S, x_S, mask=at_S < bans)
    tl.debug_barrier()
    for start in range(bans, end, SPAN):
        at_S = start + tl.arange(0, SPAN)
        id_S = tl.load(ids + at_S, mask=at_S < end, other=0)
        tl.store(logits + id_S, tl.full([SPAN], -float("inf"), tl.float32), mask=at_S < end)


def edit_logits(
    logits_NV: torch.Tensor,
    table_E: torch.Tensor,
    penalties_E3: torch.Tensor,
    ids_I: torch.Tensor,
    values_I: torch.Tensor,
) -> None:
    """Edit rows in place, float32 and contiguous.

    Args:
        logits_NV: what to edit.
        table_E: int64 [E, 5], columns as `COLUMNS` says; each entry at most once.
        penalties_E3: float32: repetition, frequency and presence penalty.
        ids_I: int64, below V.
        values_I: float32 beside them: bias, or occurrences in the output.
    """
    if len(table_E):
        edit[(len(table_E),)](
            logits_NV,
            table_E,
            penalties_E3,
            ids_I,
            values_I,
            logits_NV.shape[1],
            SPAN=_SPAN,
            COLUMNS=COLUMNS,
            num_warps=4,
            enable_fp_fusion=False,
        )
