"""Attention by the compiled CPU kernel: reads the paged cache in place, gathers nothing.

A row's result is the same bits whatever its batch mates, chunks and threads are. Shape letters in `base.py`.
"""

from __future__ import annotations

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors
from octavo.kernels.recording import before_replay

DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = (*DTYPES, "int8")
KERNEL_BLOCK_SIZE = 16
"""kBlockSize of csrc/cpu/attention.h."""


class CpuAttention:
    """The compiled kernel for one case; every feature of the case is supported."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses other devices and dtypes, and a build without the extension."""
        if BLOCK_SIZE != KERNEL_BLOCK_SIZE:
            return f"is compiled for blocks of {KERNEL_BLOCK_SIZE} tokens and not {BLOCK_SIZE}"
        if case.cache_dtype not in CACHE_DTYPES:
            return f"reads a cache of {' or '.join(CACHE_DTYPES)} and not {case.cache_dtype}"
        return extension.refusal(case.device, case.dtype, DTYPES)

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> PagedAttention:
        """The step's tables, checked and copied."""

        def tables_SB(batch: ForwardBatch) -> torch.Tensor:
            return batch.groups[group_index].block_tables_SB.contiguous()

        plan = PagedAttention(batch.query_starts, batch.context_lens, tables_SB(batch))
        before_replay(lambda batch: plan.update(batch.context_lens, tables_SB(batch)))
        return plan

    def run(
        self,
        q_THD: torch.Tensor,
        cache: KVTensors,
        plan: PagedAttention,
        /,
    ) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        q_THD = q_THD.detach().contiguous()
        out_THD = torch.empty_like(q_THD)
        plan.run(
            q_THD,
            cache,
            out_THD,
            scale=self.case.scale,
            window=self.case.window,
            ahead=self.case.ahead,
            soft_cap=self.case.soft_cap,
            num_threads=extension.num_threads(),
        )
        return out_THD
