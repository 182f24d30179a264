"""Sum with the residual, RMS norm and rounding to 8 bits in one pass over a row. Shape letters: N rows, D features.

A norm before a product of 8-bit rows would write a row that the product's own rounding reads twice: here it stays in
registers. Results as in `ops.add_rms_norm_rounded`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.rounded import LEVEL_DTYPES, Rounded
from octavo.kernels.triton.quantize import TINY, round_levels, row_scale
from octavo.kernels.triton.shared import row_with_residual


@triton.jit
def _norm_rounded(
    x,
    residual,
    weight,
    levels,
    row_scales,
    x_stride,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    LARGEST: tl.constexpr,
    IS_FP8: tl.constexpr,
    TINY: tl.constexpr,
):
    """One row. The normed row is rounded to the dtype of x first, so that levels are those of two passes."""
    row = tl.program_id(0).to(tl.int64)
    i_D = tl.arange(0, PADDED)
    is_there_D = i_D < SIZE
    x_D = row_with_residual(
        x + row * x_stride, residual + row * SIZE, i_D, is_there_D, HAS_RESIDUAL
    )
    wide_D = x_D.to(tl.float32)
    weight_D = tl.load(weight + i_D, mask=is_there_D, other=0.0).to(tl.float32)
    wide_D = wide_D * tl.rsqrt(tl.sum(wide_D * wide_D, 0) / SIZE + eps)
    normed_D = (wide_D.to(x_D.dtype).to(tl.float32) * weight_D).to(x_D.dtype).to(tl.float32)
    size_D = tl.abs(normed_D)
    is_bad = tl.max((~(size_D < float("inf"))).to(tl.int32), 0) != 0
    scale, inverse = row_scale(is_bad, tl.max(tl.where(is_bad, 1.0, size_D), 0), LARGEST, TINY)
    tl.store(row_scales + row, scale)
    level_D = round_levels(tl.where(is_bad, 0.0, normed_D * inverse), LARGEST, IS_FP8)
    tl.store(levels + row * SIZE + i_D, level_D.to(levels.dtype.element_ty), mask=is_there_D)


def add_rms_norm_rounded(
    x_ND: Tensor, residual_ND: Tensor | None, weight_D: Tensor, eps: float, kind: str
) -> tuple[Rounded, Tensor]:
    """As `ops.add_rms_norm_rounded`; the sum is written over the residual."""
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    rows, size = x_ND.shape
    sum_ND = x_ND if residual_ND is None else residual_ND.contiguous()
    levels_ND = torch.empty((rows, size), dtype=LEVEL_DTYPES[kind], device=x_ND.device)
    scales_N = torch.empty(rows, dtype=torch.float32, device=x_ND.device)
    if rows:
        padded = triton.next_power_of_2(size)
        _norm_rounded[(rows,)](
            x_ND,
            sum_ND,
            weight_D,
            levels_ND,
            scales_N,
            x_ND.stride(0),
            eps,
            SIZE=size,
            PADDED=padded,
            HAS_RESIDUAL=residual_ND is not None,
            LARGEST=448.0 if kind == "fp8" else 127.0,
            IS_FP8=kind == "fp8",
            TINY=TINY,
            num_warps=min(16, max(1, padded // 512)),
            enable_fp_fusion=False,
        )
    return Rounded(levels_ND, scales_N, x_ND.dtype), sum_ND
