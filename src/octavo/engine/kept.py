"""What captured steps find where it was when they were captured: inputs, attention plans, and what passes between pieces.

All sizes share it, because one step runs at a time. Shape letters: R rows of the largest size, T tokens of the step, B
blocks of the longest table, H heads, D head dim or hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What captured steps have to hold, and may take."""

    max_num_seqs: int
    max_model_len: int
    num_blocks: tuple[int, ...]
    """Per KV group."""
    num_bytes: int
    """Most that they may take, in all."""
    piece_tokens: int = 0
    """Most tokens of a step whose layers are captured one by one; 0: none are."""


class KeptPlans:
    """Attention plans of one size's steps: made once, filled for each step. What a batch of a captured step carries."""

    def __init__(self, size: int, room: Room, largest: KeptPlans | None = None) -> None:
        """`largest`: the plans of the largest size, whose scratch memory the others use, too; None: these are they."""
        self._size = size
        self._room = room
        self._largest = largest
        self._batch: ForwardBatch | None = None
        self._made: dict[tuple[int, int], tuple[Any, Any]] = {}

    def plan(self, backend: Any, group: int, spec: KVSpec) -> Any:
        """The backend's plan for a KV group, filled for the step at hand."""
        key = (id(backend), group)
        if key not in self._made:
            assert self._batch is not None, "filled before the model runs"
            tables_SB = self._batch.groups[group].block_tables_SB
            held = self._room.num_blocks[group] * BLOCK_SIZE + self._size
            beside = None if self._largest is None else self._largest.made(backend, group)
            plan = backend.reserve(
                tables_SB, max_len=self._room.max_model_len, max_tokens=held, beside=beside
            )
            backend.fill(plan, self._batch, group)
            self._made[key] = (backend, plan)
        return self._made[key][1]

    def made(self, backend: Any, group: int) -> Any:
        """The plan that there is, or None."""
        return self._made.get((id(backend), group), (None, None))[1]

    def fill(self, batch: ForwardBatch) -> None:
        """Write a step, padded, into the plans that there are."""
        self._batch = batch
        for (_, group), (backend, plan) in self._made.items():
            backend.fill(plan, batch, group)


class Inputs:
    """The buffers that captured steps read."""

    def __init__(self, room: Room, device: torch.device) -> None:
        rows, width = room.max_num_seqs, -(-room.max_model_len // BLOCK_SIZE)
        tokens = max(rows, room.piece_tokens)
        groups = range(len(room.num_blocks))

        def numbers() -> torch.Tensor:
            return torch.zeros(tokens, dtype=torch.int64, device=device)

        self._token_ids_T, self._positions_T = numbers(), numbers()
        self._slots_GT = [numbers() for _ in groups]
        self._tables_GRB = [
            torch.zeros(rows, width, dtype=torch.int32, device=device) for _ in groups
        ]
        self._all_T = torch.arange(tokens, device=device)

    def load(self, batch: ForwardBatch | None, size: int, plans: KeptPlans) -> ForwardBatch:
        """Write a step of one token per sequence into them: that of its size, with padding rows behind its own. None: all
        rows are padding.
        """
        count = 0 if batch is None else batch.num_slices
        self._load_rows(batch, size)
        for group, tables_RB in enumerate(self._tables_GRB):
            # What earlier steps left behind a row's own blocks lies beyond its context.
            if batch is not None:
                tables_SB = batch.groups[group].block_tables_SB
                tables_RB[:count, : tables_SB.shape[1]].copy_(tables_SB)
            if size > count:
                tables_RB[count:size].zero_()
        lens = () if batch is None else batch.context_lens
        padded = ForwardBatch(
            token_ids_T=self._token_ids_T[:size],
            positions_T=self._positions_T[:size],
            query_starts=tuple(range(size + 1)),
            context_lens=(*lens, *(1,) * (size - count)),
            groups=tuple(
                GroupBatch(slots_T=slots_T[:size], block_tables_SB=tables_RB[:size])
                for slots_T, tables_RB in zip(self._slots_GT, self._tables_GRB, strict=True)
            ),
            logits_rows_N=self._all_T[:size],
            plans=plans,
        )
        plans.fill(padded)
        return padded

    def load_pieces(self, batch: ForwardBatch, size: int) -> ForwardBatch:
        """Write any step into them, with padding rows behind its own: what the parts between attentions read of a step."""
        self._load_rows(batch, size)
        return ForwardBatch(
            token_ids_T=self._token_ids_T[:size],
            positions_T=self._positions_T[:size],
            query_starts=(0, size),
            context_lens=(size,),
            groups=tuple(
                GroupBatch(slots_T=slots_T[:size], block_tables_SB=tables_RB[:1])
                for slots_T, tables_RB in zip(self._slots_GT, self._tables_GRB, strict=True)
            ),
            logits_rows_N=self._all_T[:size],
        )

    def _load_rows(self, batch: ForwardBatch | None, size: int) -> None:
        count = 0
        kept = [self._token_ids_T, self._positions_T, *self._slots_GT]
        if batch is not None:
            count = batch.num_tokens
            now = [batch.token_ids_T, batch.positions_T, *(g.slots_T for g in batch.groups)]
            for kept_T, now_T in zip(kept, now, strict=True):
                kept_T[:count].copy_(now_T)
        if size > count:
            for kept_T in kept:
                kept_T[count:size].zero_()


class Bridges:
    """What passes from a captured piece to the attention behind it and from there to the next piece; and the end of all."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self._pairs: dict[tuple[tuple[int, ...], torch.dtype], tuple[torch.Tensor, ...]] = {}
        self._hidden_TD: torch.Tensor | None = None

    def pair(self, like_THD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and outputs of attention in this shape, [T, H, D] of the most tokens."""
        key = tuple(like_THD.shape[1:]), like_THD.dtype
        if key not in self._pairs:
            shape = (self._tokens, *key[0])
            self._pairs[key] = tuple(like_THD.new_zeros(shape) for _ in range(2))
        queries_THD, outputs_THD = self._pairs[key]
        return queries_THD, outputs_THD

    def hidden(self, like_TD: torch.Tensor) -> torch.Tensor:
        """Where hidden states end up, [T, D] of the most tokens."""
        if self._hidden_TD is None:
            self._hidden_TD = like_TD.new_zeros(self._tokens, like_TD.shape[1])
        return self._hidden_TD

    def pad(self, count: int, size: int) -> None:
        """Rows `count` to `size` find nothing, whatever an earlier step has left there: it might be no number."""
        for _, outputs_THD in self._pairs.values():
            outputs_THD[count:size].zero_()
