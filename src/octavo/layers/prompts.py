"""Whole prompts of a step laid out in blocks, so that encoders attend by the same kernels as decoders do.

Nothing outlives the step: the blocks are scratch, and all layers take turns with the same ones. Shape letters: T tokens,
S prompts, B blocks of the longest.
"""

from __future__ import annotations

import numpy as np
import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE
from octavo.kernels.kv import KVTensors


class PromptBlocks:
    """Scratch for the keys and values of a step. Owner: the model, whose forward calls `lay_out` first.

    Grows to the largest step there was and stays. Zero at first: a masked position is multiplied by zero and must not
    hold NaN.
    """

    def __init__(
        self, num_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (BLOCK_SIZE, num_heads, head_dim)
        self._dtype, self._device = dtype, device
        self._cache = self._make(2)

    def layer(self, index: int) -> KVTensors:
        """The same blocks for every layer."""
        return self._cache

    def lay_out(self, batch: ForwardBatch) -> GroupBatch:
        """Blocks of each prompt one after the other, from block 1 on."""
        device = batch.token_ids_T.device
        starts = np.array(batch.query_starts, np.int64)
        lens_S = starts[1:] - starts[:-1]
        blocks_S = -(-lens_S // BLOCK_SIZE)
        firsts_S = 1 + np.cumsum(blocks_S) - blocks_S
        num_blocks = 1 + int(blocks_S.sum())
        if num_blocks > len(self._cache.k):
            self._cache = self._make(num_blocks)
        offsets_T = np.arange(batch.num_tokens) - np.repeat(starts[:-1], lens_S)
        slots_T = np.repeat(firsts_S * BLOCK_SIZE, lens_S) + offsets_T
        columns_B = np.arange(int(blocks_S.max()))
        tables_SB = np.where(columns_B < blocks_S[:, None], firsts_S[:, None] + columns_B, 0)
        return GroupBatch(
            slots_T=torch.from_numpy(slots_T).to(device),
            block_tables_SB=torch.from_numpy(tables_SB.astype(np.int32)).to(device),
        )

    def _make(self, num_blocks: int) -> KVTensors:
        def zeros() -> torch.Tensor:
            return torch.zeros(num_blocks, *self._shape, dtype=self._dtype, device=self._device)

        return KVTensors(zeros(), zeros())
