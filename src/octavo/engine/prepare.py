"""The rows: what a rank keeps of every running sequence, and the only place that packs tensors for a step.

Tokens and block tables live in preallocated host arrays, one row per running sequence; a plan's changes are written
into them and a step's tensors are gathered from them, so that the cost of a step does not grow with context lengths.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE
from octavo.core.plan import Slice, StepPlan
from octavo.core.request import Request


class Rows:
    """Host-side state of the running sequences. Owner: the runner."""

    def __init__(self, max_num_seqs: int, max_model_len: int, num_groups: int) -> None:
        max_blocks = -(-max_model_len // BLOCK_SIZE)
        self.tokens_RL = np.zeros((max_num_seqs, max_model_len + 1), np.int64)
        self.num_tokens_R = np.zeros(max_num_seqs, np.int64)
        self.tables_GRB = np.zeros((num_groups, max_num_seqs, max_blocks), np.int32)
        self.num_blocks_GR = np.zeros((num_groups, max_num_seqs), np.int64)
        self.requests: dict[int, Request] = {}

    def update(self, plan: StepPlan) -> None:
        """Take over what a plan says: ended rows, new rows, appended blocks."""
        for row in plan.ended:
            self.requests.pop(row, None)
        for start in plan.starts:
            count = len(start.token_ids)
            self.requests[start.row] = start.request
            self.tokens_RL[start.row, :count] = start.token_ids
            self.num_tokens_R[start.row] = count
            self.num_blocks_GR[:, start.row] = 0
            self._append_blocks(start.row, start.blocks)
        for piece in plan.slices:
            self._append_blocks(piece.row, piece.new_blocks)

    def _append_blocks(self, row: int, blocks: tuple[tuple[int, ...], ...]) -> None:
        for group, new in enumerate(blocks):
            if new:
                have = self.num_blocks_GR[group, row]
                self.tables_GRB[group, row, have : have + len(new)] = new
                self.num_blocks_GR[group, row] += len(new)

    def append_token(self, row: int, token_id: int) -> None:
        """Write a sampled token behind the row's known tokens."""
        self.tokens_RL[row, self.num_tokens_R[row]] = token_id
        self.num_tokens_R[row] += 1


def pack(
    rows: Rows, slices: tuple[Slice, ...], logits_rows: np.ndarray, device: torch.device
) -> ForwardBatch:
    """One step as tensors. `logits_rows` int64 [N]: indices into the step's tokens whose logits are wanted."""
    row_S = np.fromiter((piece.row for piece in slices), np.int64, len(slices))
    start_S = np.fromiter((piece.start for piece in slices), np.int64, len(slices))
    count_S = np.fromiter((piece.count for piece in slices), np.int64, len(slices))
    query_starts = np.concatenate(([0], np.cumsum(count_S)))
    row_T = np.repeat(row_S, count_S)
    offset_T = np.arange(query_starts[-1]) - np.repeat(query_starts[:-1], count_S)
    position_T = np.repeat(start_S, count_S) + offset_T
    context_S = start_S + count_S
    width = int(-(-context_S.max() // BLOCK_SIZE))
    groups = tuple(
        GroupBatch(
            slots_T=_tensor(
                table_RB[row_T, position_T // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE
                + position_T % BLOCK_SIZE,
                device,
            ),
            block_tables_SB=_tensor(table_RB[row_S, :width], device),
        )
        for table_RB in rows.tables_GRB
    )
    return ForwardBatch(
        token_ids_T=_tensor(rows.tokens_RL[row_T, position_T], device),
        positions_T=_tensor(position_T, device),
        query_starts=tuple(query_starts.tolist()),
        context_lens=tuple(context_S.tolist()),
        groups=groups,
        logits_rows_N=_tensor(logits_rows, device),
    )


def _tensor(values: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device, non_blocking=True)
