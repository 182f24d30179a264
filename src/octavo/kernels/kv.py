"""One layer's keys and values as tensors, in whatever dtype the cache keeps them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVTensors(NamedTuple):
    """A layer's cache. k and v: [num_blocks, BLOCK_SIZE, G, D], C-contiguous.

    An int8 cache has a float32 scale per token and head, [num_blocks, BLOCK_SIZE, G]: a value is its integer times its
    scale. Others have none.
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """All that are there."""
        return tuple(tensor for tensor in self if tensor is not None)


CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""What a cache may be kept in; the numbers are those of `DType` in csrc/cpu/attention.h."""


def quantize(x_TGD: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per token and head: integers [T, G, D] and float32 scales [T, G].

    The scale is the largest magnitude / 127, so that -127 .. 127 are used; integers are rounded to nearest, ties to even.
    """
    x_TGD = x_TGD.float()
    largest_TG = x_TGD.abs().amax(-1)
    inverse_TG = torch.where(largest_TG > 0, 127.0 / largest_TG, 0.0)
    return (x_TGD * inverse_TG.unsqueeze(-1)).round().to(torch.int8), largest_TG / 127.0


def gather(values: Tensor, scales: Tensor | None, slots: Tensor | slice) -> Tensor:
    """Keys or values of some slots: [num_blocks, BLOCK_SIZE, G, D] -> [*slots, G, D], float32 where there are scales."""
    rows = values.flatten(0, 1)[slots]
    return rows if scales is None else rows.float() * scales.flatten(0, 1)[slots].unsqueeze(-1)
