"""Rows of activations to 8 bits in Triton, each with one scale or with one per group. Shape letters: N rows, D inputs, G groups."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_ROUND = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding and subtracting it rounds to the nearest integer, ties to even."""
_SUBNORMAL_ROUND = tl.constexpr(24576.0)
"""1.5 * 2**14: the same, to multiples of 2**-9, the smallest e4m3."""


@triton.jit
def _round_e4m3(value):
    """The nearest e4m3 of float32 within its range, ties to even, so that the conversion itself rounds nothing."""
    bits = value.to(tl.int32, bitcast=True)
    kept = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    normal = kept.to(tl.float32, bitcast=True)
    return tl.where(tl.abs(value) < 0.015625, (value + _SUBNORMAL_ROUND) - _SUBNORMAL_ROUND, normal)


@triton.jit
def row_scale(is_bad, largest, LARGEST: tl.constexpr, TINY: tl.constexpr):
    """The scale of each row and what to multiply it with, by its largest magnitude. NaN for a row that is not finite."""
    is_zero = largest < TINY
    top = tl.zeros_like(largest) + LARGEST
    inverse = tl.where(is_zero, 0.0, tl.div_rn(top, tl.where(is_zero, 1.0, largest)))
    scale = tl.where(is_zero, 0.0, tl.div_rn(largest, top))
    return tl.where(is_bad, float("nan"), scale), inverse


@triton.jit
def round_levels(scaled, LARGEST: tl.constexpr, IS_FP8: tl.constexpr):
    """The nearest levels, still float32; ties to even."""
    if IS_FP8:
        scaled = _round_e4m3(tl.minimum(tl.maximum(scaled, -LARGEST), LARGEST))
    else:
        scaled = (scaled + _ROUND) - _ROUND
    return scaled


@triton.jit
def quantize_row(
    x,
    levels,
    row_scales,
    inputs,
    LARGEST: tl.constexpr,
    IS_FP8: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A row [D] to int8 or e4m3 levels and one scale: its largest magnitude is LARGEST.

    A row with NaN or infinity has the scale NaN, so that nothing of it is finite. To be compiled without fused
    multiply-adds: levels are those of `formats.quantize_rows`.
    """
    row = tl.program_id(0).to(tl.int64)
    x += row * inputs
    levels += row * inputs
    largest_B = tl.zeros([BLOCK], tl.float32)
    is_bad_B = tl.zeros([BLOCK], tl.int32)
    for start in range(0, inputs, BLOCK):
        d_B = start + tl.arange(0, BLOCK)
        size_B = tl.abs(tl.load(x + d_B, mask=d_B < inputs, other=0).to(tl.float32))
        is_bad_B |= (~(size_B < float("inf"))).to(tl.int32)
        largest_B = tl.maximum(largest_B, size_B)
    is_bad = tl.max(is_bad_B, 0) != 0
    largest = tl.where(is_bad, 1.0, tl.max(largest_B, 0))
    scale, inverse = row_scale(is_bad, largest, LARGEST, TINY)
    tl.store(row_scales + row, scale)
    for start in range(0, inputs, BLOCK):
        d_B = start + tl.arange(0, BLOCK)
        value_B = tl.load(x + d_B, mask=d_B < inputs, other=0).to(tl.float32)
        scaled_B = tl.where(is_bad, 0.0, value_B * inverse)
        scaled_B = round_levels(scaled_B, LARGEST, IS_FP8)
        tl.store(levels + d_B, scaled_B.to(levels.dtype.element_ty), mask=d_B < inputs)


@triton.jit(do_not_specialize=["num_rows"])
def quantize_group(
    x,
    levels,
    scales,
    num_rows,
    inputs,
    GROUP: tl.constexpr,
    TINY: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """GROUPS groups of a row [D] to e4m3 levels, and a scale each into scales [G, N]. Compiled as `quantize_row` is."""
    row = tl.program_id(0).to(tl.int64)
    g_G = tl.program_id(1) * GROUPS + tl.arange(0, GROUPS)
    d_Gg = g_G[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    at_Gg = row * inputs + d_Gg
    value_Gg = tl.load(x + at_Gg, mask=d_Gg < inputs, other=0).to(tl.float32)
    size_Gg = tl.abs(value_Gg)
    is_bad_G = tl.max((~(size_Gg < float("inf"))).to(tl.int32), 1) != 0
    largest_G = tl.max(tl.where(is_bad_G[:, None], 1.0, size_Gg), 1)
    scale_G, inverse_G = row_scale(is_bad_G, largest_G, 448.0, TINY)
    tl.store(scales + g_G.to(tl.int64) * num_rows + row, scale_G, mask=g_G * GROUP < inputs)
    scaled_Gg = tl.where(is_bad_G[:, None], 0.0, value_Gg * inverse_G[:, None])
    level_Gg = round_levels(scaled_Gg, 448.0, True)
    tl.store(levels + at_Gg, level_Gg.to(levels.dtype.element_ty), mask=d_Gg < inputs)


_BLOCK = 4096
GROUPS = 8
"""Groups of a program that rounds groups: of 128 inputs a kilobyte of levels, and enough programs for one row."""
TINY = 2.0**-119
"""Below it a row counts as zero, as in `formats.py`."""


def quantize_rows(x_ND: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Levels [N, D] of `dtype` (int8 or float8_e4m3fn) and float32 scales [N]: x is about level * scale."""
    x_ND = x_ND.contiguous()
    rows, inputs = x_ND.shape
    levels_ND = torch.empty(rows, inputs, dtype=dtype, device=x_ND.device)
    scales_N = torch.empty(rows, dtype=torch.float32, device=x_ND.device)
    is_fp8 = dtype == torch.float8_e4m3fn
    if rows:
        block = min(_BLOCK, triton.next_power_of_2(max(inputs, 16)))
        quantize_row[(rows,)](
            x_ND,
            levels_ND,
            scales_N,
            inputs,
            LARGEST=448.0 if is_fp8 else 127.0,
            IS_FP8=is_fp8,
            TINY=TINY,
            BLOCK=block,
            num_warps=4 if block <= 2048 else 8,
            enable_fp_fusion=False,
        )
    return levels_ND, scales_N


def quantize_row_groups(x_ND: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 levels [N, D] and float32 scales [G, N]: those of `rounded.quantize_groups`."""
    x_ND = x_ND.contiguous()
    rows, inputs = x_ND.shape
    groups = triton.cdiv(inputs, group)
    levels_ND = torch.empty(rows, inputs, dtype=torch.float8_e4m3fn, device=x_ND.device)
    scales_GN = torch.empty(groups, rows, dtype=torch.float32, device=x_ND.device)
    if rows and inputs:
        quantize_group[(rows, triton.cdiv(groups, GROUPS))](
            x_ND,
            levels_ND,
            scales_GN,
            rows,
            inputs,
            GROUP=group,
            TINY=TINY,
            GROUPS=GROUPS,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return levels_ND, scales_GN
