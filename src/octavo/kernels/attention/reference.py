"""The oracle: one slice at a time, float32 throughout, every feature. Shape letters in `base.py`."""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase, context_slots
from octavo.kernels.kv import KVTensors, gather


class SlicePlan(NamedTuple):
    """One slice: its rows of T, the slots of its context, and how long that is."""

    start: int
    end: int
    slots_L: torch.Tensor


class ReferenceAttention:
    """softmax(scale * q k^T + mask) v by the definition (https://arxiv.org/abs/1706.03762)."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses rows that must not depend on their batch: the library orders sums by the number of rows."""
        return "orders sums by the number of rows" if case.is_invariant else None

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> tuple[SlicePlan, ...]:
        """Slots of every slice's whole context."""
        tables_SB = batch.groups[group_index].block_tables_SB
        starts = batch.query_starts
        return tuple(
            SlicePlan(starts[i], starts[i + 1], context_slots(tables_SB[i], 0, length, BLOCK_SIZE))
            for i, length in enumerate(batch.context_lens)
        )

    def run(
        self,
        q_THD: torch.Tensor,
        cache: KVTensors,
        plan: tuple[SlicePlan, ...],
        /,
    ) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        out_THD = torch.zeros_like(q_THD)
        for piece in plan:
            q_QHD = q_THD[piece.start : piece.end].float()
            k_LGD = gather(cache.k, cache.k_scales, piece.slots_L)
            v_LGD = gather(cache.v, cache.v_scales, piece.slots_L)
            out_QHD = self._attend(q_QHD, k_LGD.float(), v_LGD.float())
            out_THD[piece.start : piece.end] = out_QHD.to(q_THD.dtype)
        return out_THD

    def _attend(
        self, q_QHD: torch.Tensor, k_LGD: torch.Tensor, v_LGD: torch.Tensor
    ) -> torch.Tensor:
        case = self.case
        repeat = case.num_heads // case.num_kv_heads
        k_LHD, v_LHD = k_LGD.repeat_interleave(repeat, 1), v_LGD.repeat_interleave(repeat, 1)
        scores_HQL = torch.einsum("qhd,lhd->hql", q_QHD, k_LHD) * case.scale
        if case.soft_cap is not None:
            scores_HQL = case.soft_cap * torch.tanh(scores_HQL / case.soft_cap)
        count, length = q_QHD.shape[0], k_LGD.shape[0]
        queries, keys = range(length - count, length), range(length)
        visible_QL = visible(queries, keys, case, q_QHD.device)
        scores_HQL = scores_HQL.masked_fill(~visible_QL, float("-inf"))
        return torch.einsum("hql,lhd->qhd", scores_HQL.softmax(-1), v_LHD)


def visible(queries: range, keys: range, case: AttentionCase, device: torch.device) -> torch.Tensor:
    """Bool [len(queries), len(keys)]: whether the query at each position sees the key at each position."""
    q_Q1 = torch.arange(queries.start, queries.stop, device=device).unsqueeze(1)
    k_L = torch.arange(keys.start, keys.stop, device=device)
    seen_QL = k_L <= q_Q1 + case.ahead
    return seen_QL if case.window is None else seen_QL & (k_L > q_Q1 - case.window)
