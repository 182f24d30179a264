"""Paged attention by the compiled kernel.

Shape letters: T tokens in the step, H query heads, G key/value heads, D head size, S slices, B table width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from octavo.kernels.cpu.extension import native


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

    def run(
        self,
        q_THD: Array,
        k_cache: Array,
        v_cache: Array,
        out_THD: Array,
        *,
        scale: float,
        window: int | None = None,
        soft_cap: float | None = None,
        num_threads: int = 1,
        isa: str = "",
    ) -> None:
        """Write attention into `out_THD`.

        All arrays are C-contiguous and share one dtype, float32 or bfloat16; sums are float32. Caches are
        [num_blocks, 16, G, D]. `isa` forces an instruction set; the empty string takes the best.

        Raises:
            ValueError: shapes, dtypes or block ids do not fit.
            TypeError: an array is elsewhere than on the CPU, or not contiguous.
        """
        native.paged_attention(
            self._plan,
            q_THD,
            k_cache,
            v_cache,
            out_THD,
            scale=scale,
            window=window or 0,
            soft_cap=soft_cap or 0.0,
            num_threads=num_threads,
            isa=isa,
        )
