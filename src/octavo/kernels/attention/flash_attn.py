"""Attention by FlashAttention 3, where it is installed: https://github.com/Dao-AILab/flash-attention (hopper).

Its `flash_attn_with_kvcache` reads pages of any size, so Octavo's cache as it is: k and v [blocks, 16, G, D] and an int32
table per sequence. FlashAttention 2 has a function of the same name whose pages must be multiples of 256 tokens; it is
refused. Shape letters in `base.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention import installed
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.kv import KVTensors

MODULE, OLDER = "flash_attn_interface", "flash_attn"
HEAD_DIMS = (64, 96, 128, 192, 256)
CAPABILITY = (9, 0)
"""Its kernels are Hopper's."""


class FlashPlan(NamedTuple):
    """A step's tables, int32, on the device."""

    tables_SB: torch.Tensor
    lens_S: torch.Tensor
    starts_S1: torch.Tensor
    most_queries: int


class FlashAttention:
    """For one case."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case
        module = installed.load(MODULE)
        assert not isinstance(module, str), module
        self._attend: Any = module.flash_attn_with_kvcache

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses all but causal attention in 16 bits on Hopper, and a process without FlashAttention 3."""
        reason = installed.refusal(case, HEAD_DIMS)
        if reason is not None:
            return reason
        if not installed.is_installed(MODULE):
            if installed.is_installed(OLDER):
                return (
                    f"FlashAttention 2 is installed, whose pages are multiples of 256 tokens and not {BLOCK_SIZE}; "
                    "FlashAttention 3 takes them"
                )
            return "FlashAttention 3 is not installed"
        reason = installed.refusal_of_device(CAPABILITY, CAPABILITY)
        if reason is not None:
            return reason
        module = installed.load(MODULE)
        return module if isinstance(module, str) else None

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> FlashPlan:
        """The step's tables."""
        tables_SB = batch.groups[group_index].block_tables_SB
        device = tables_SB.device
        begins = batch.query_starts
        return FlashPlan(
            tables_SB.contiguous(),
            installed.send(installed.contexts(batch), device),
            installed.send(installed.starts(batch), device),
            max((b - a for a, b in zip(begins, begins[1:], strict=False)), default=0),
        )

    def reserve(
        self,
        tables_SB: torch.Tensor,
        *,
        max_len: int,
        max_tokens: int,
        beside: FlashPlan | None = None,
    ) -> FlashPlan:
        """A plan of steps of one token for each of S sequences, to be filled before each: what a graph captures."""
        size, device = len(tables_SB), tables_SB.device
        lens_S = torch.ones(size, dtype=torch.int32, device=device)
        starts_S1 = torch.arange(size + 1, dtype=torch.int32, device=device)
        return FlashPlan(tables_SB, lens_S, starts_S1, 1)

    def fill(self, plan: FlashPlan, batch: ForwardBatch, group_index: int) -> None:
        """Write a step of one token per sequence into a plan from `reserve`; its tables, too, unless they lie there.

        Raises:
            ValueError: the step is of another size.
        """
        if batch.num_tokens != len(plan.lens_S) or batch.num_slices != len(plan.lens_S):
            raise ValueError(f"a step of {batch.num_tokens} tokens, and a plan of {plan.lens_S}")
        lens_S = installed.contexts(batch)
        plan.lens_S.copy_(installed.send(lens_S, plan.lens_S.device))
        tables_SB = batch.groups[group_index].block_tables_SB
        if tables_SB.data_ptr() != plan.tables_SB.data_ptr():
            plan.tables_SB[:, : tables_SB.shape[1]].copy_(tables_SB)

    def run(self, q_THD: torch.Tensor, cache: KVTensors, plan: FlashPlan, /) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        if plan.most_queries == 0:
            return torch.empty_like(q_THD)
        left = installed.window_left(self.case)
        out_THD: torch.Tensor = self._attend(
            q_THD.contiguous(),
            cache.k,
            cache.v,
            cache_seqlens=plan.lens_S,
            page_table=plan.tables_SB,
            cu_seqlens_q=plan.starts_S1,
            max_seqlen_q=plan.most_queries,
            softmax_scale=self.case.scale,
            causal=True,
            window_size=(left, -1 if left < 0 else 0),
            softcap=self.case.soft_cap or 0.0,
        )
        return out_THD
