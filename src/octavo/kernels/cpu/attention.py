"""Paged attention by the compiled kernel.

Shape letters: T tokens in the step, H query heads, G key/value heads, D head size, S slices, B table width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from octavo.kernels.cpu.extension import address, native
from octavo.kernels.cpu.rows import cache_addresses
from octavo.kernels.kv import CODES, KVTensors


class Array(Protocol):
    """What can be passed without a copy: numpy arrays and torch CPU tensors."""

    def __dlpack_device__(self) -> tuple[int, int]:
        """Where the data lie."""
        ...


class PagedAttention:
    """Attention of one step's tokens over their cached keys: planned once per step, run once per layer.

    A row's result depends on its own query, keys and values alone: not on its batch mates, on how its prompt was cut
    into chunks, or on the number of threads.
    """

    def __init__(
        self, query_starts: Sequence[int], context_lens: Sequence[int], block_tables_SB: Array
    ) -> None:
        """Check and copy the step's tables (`block_tables_SB` int32 [S, B]).

        Raises:
            ValueError: the tables do not fit each other.
        """
        self._plan = native.AttentionPlan(query_starts, context_lens, block_tables_SB)

    def update(self, context_lens: Sequence[int], block_tables_SB: Array) -> None:
        """The same slices some steps later, for a replay of what was recorded with this plan.

        Raises:
            ValueError: the tables do not fit each other, or the caches that the plan was run with.
        """
        self._plan.update(context_lens, block_tables_SB)

    def run(
        self,
        q_THD: Tensor,
        cache: KVTensors,
        out_THD: Tensor,
        *,
        scale: float,
        window: int | None = None,
        ahead: int = 0,
        soft_cap: float | None = None,
        num_threads: int = 1,
        isa: str = "",
    ) -> None:
        """Write attention into `out_THD`.

        Queries and output share one dtype, float32, bfloat16 or float16; the cache has its own, one of these or int8.
        Sums are float32. All are C-contiguous; caches are [num_blocks, 16, G, D]. `isa` forces an instruction set; the
        empty string takes the best.

        Raises:
            ValueError: shapes, dtypes, layout or block ids do not fit.
        """
        _, heads, dim = q_THD.shape
        dtype, cache_dtype = q_THD.dtype, cache.k.dtype
        if dtype not in CODES or dtype is torch.int8 or cache_dtype not in CODES:
            raise ValueError(f"no attention of {dtype} over a cache of {cache_dtype}.")
        blocks, _, kv_heads, _ = cache.k.shape
        shape = (blocks, 16, kv_heads, dim)
        k_scales = v_scales = 0
        k_cache, v_cache, k_scales, v_scales = cache_addresses(cache, shape)
        native.paged_attention(
            self._plan,
            address("q", q_THD, q_THD.shape, dtype),
            k_cache,
            v_cache,
            k_scales,
            v_scales,
            address("out", out_THD, q_THD.shape, dtype),
            q_THD.shape[0],
            blocks,
            heads,
            kv_heads,
            dim,
            CODES[dtype],
            CODES[cache_dtype],
            scale,
            window or 0,
            ahead,
            soft_cap or 0.0,
            num_threads,
            isa,
        )
