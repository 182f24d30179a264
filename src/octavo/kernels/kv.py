"""One layer's keys and values as tensors, in whatever dtype the cache keeps them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class KVTensors(NamedTuple):
    """A layer's cache. k and v: [num_blocks, BLOCK_SIZE, G, D], C-contiguous.

    An int8 cache has a float32 scale per token and head, [num_blocks, BLOCK_SIZE, G]: a value is its integer times its
    scale. Others have none; float8_e4m3fn keeps what is beyond its largest number, 448, as that.
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


def narrow(x_TGD: Tensor, dtype: torch.dtype) -> Tensor:
    """As a cache without scales keeps it."""
    if dtype is torch.float8_e4m3fn:  # has no infinity; torch would make NaN of it
        x_TGD = x_TGD.float().clamp(-448, 448)
    return x_TGD.to(dtype)


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
