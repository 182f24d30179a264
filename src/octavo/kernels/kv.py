"""One layer's keys and values as tensors, in whatever dtype the cache keeps them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVTensors(NamedTuple):
    """A layer's cache. k and v: [num_blocks, BLOCK_SIZE, G, D], C-contiguous.

    A cache of 8 bits (`LARGEST`) has a float32 scale per token and head, [num_blocks, BLOCK_SIZE, G]: a value is its level
    times its scale. Others have none.
    """

    k: Tensor
    v: Tensor
    k_scales: Tensor | None = None
    v_scales: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """All that are there."""
        return tuple(tensor for tensor in self if tensor is not None)


LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""Caches with scales, and the level that the largest magnitude of a token's head becomes."""
_LEAST = {torch.int8: 0.0, torch.float8_e4m3fn: 2.0**-119}
"""No larger magnitude counts as zero. The inverse of smaller ones would not be finite, which e4m3 cannot say."""
CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""What a cache may be kept in on a CPU; the numbers are those of `DType` in csrc/cpu/attention.h."""


def quantize(x_TGD: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """Symmetric, per token and head: levels [T, G, D] of an 8-bit `dtype` and float32 scales [T, G].

    The largest magnitude becomes the largest level. Rounded to nearest, ties to even: int8 is off by at most 1 / 254 of the
    largest of its head, e4m3 by at most 1 / 16 of the value, or 2^-10 / 448 of the largest where that is more.
    """
    x_TGD = x_TGD.float()
    largest_TG = x_TGD.abs().amax(-1)
    largest_TG = torch.where(largest_TG <= _LEAST[dtype], 0.0, largest_TG)
    inverse_TG = torch.where(largest_TG > 0, LARGEST[dtype] / largest_TG, 0.0)
    levels_TGD = x_TGD * inverse_TG.unsqueeze(-1)
    if dtype is torch.int8:
        levels_TGD = levels_TGD.round()
    else:  # has no infinity; torch would make NaN of it
        levels_TGD = levels_TGD.clamp(-448, 448)
    return levels_TGD.to(dtype), largest_TG / LARGEST[dtype]


def gather(values: Tensor, scales: Tensor | None, slots: Tensor | slice) -> Tensor:
    """Keys or values of some slots: [num_blocks, BLOCK_SIZE, G, D] -> [*slots, G, D], float32 where there are scales."""
    rows = _indexable(values).flatten(0, 1)[slots].view(values.dtype)
    return rows if scales is None else rows.float() * scales.flatten(0, 1)[slots].unsqueeze(-1)


def scatter(values: Tensor, rows_TGD: Tensor, slots_T: Tensor) -> None:
    """Write rows, in the values' dtype, into some slots."""
    into, rows_TGD = _indexable(values), _indexable(rows_TGD)
    into.flatten(0, 1).index_copy_(0, slots_T, rows_TGD)


def _indexable(values: Tensor) -> Tensor:
    """The same bytes in a type that torch indexes everywhere."""
    return values.view(torch.uint8) if values.dtype is torch.float8_e4m3fn else values
