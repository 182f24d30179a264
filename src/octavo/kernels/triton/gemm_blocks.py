"""Products of e4m3 rows and weights in Triton where both have scales of groups of inputs, and weights of blocks of outputs.

The numbers of DeepSeek-V3's and Qwen3's FP8 checkpoints (https://arxiv.org/abs/2412.19437, 3.3.2). Sums of a group leave the
matrix unit, which keeps them in fewer bits than float32, and are scaled. The rest is as in `gemm.py`, tiles and shares, too.
Shape letters: N rows, D inputs, O outputs, G groups of inputs, B blocks of outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.gemm import add_shared, finish, nothing, place, target_of
from octavo.kernels.triton.quantize import quantize_row_groups
from octavo.kernels.triton.tiles import Tile


@triton.jit(do_not_specialize=["num_rows"])
def linear_blocks(
    x,
    levels,
    scales,
    row_scales,
    bias,
    out,
    num_rows,
    outputs,
    inputs,
    num_blocks,
    groups_per_share,
    TALL: tl.constexpr,
    GROUP: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SHARE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BAND: tl.constexpr,
):
    """Rows [N, D] by weights [O, D], both e4m3, with float32 scales [G, N] and [G, B] of GROUP inputs and TALL outputs.

    Where a tile lies within a block, what its sums are scaled with is one number per row.
    """
    n_N, o_O = place(num_rows, outputs, BLOCK_N, BLOCK_O, BAND)
    d_D = tl.arange(0, GROUP)
    is_row_N, is_output_O = n_N < num_rows, o_O < outputs
    levels_OD = levels + o_O.to(tl.int64)[:, None] * inputs + d_D[None, :]
    x_DN = x + n_N.to(tl.int64)[None, :] * inputs + d_D[:, None]
    b_O = o_O // TALL
    first_b = tl.min(b_O, 0)
    acc_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
    first = tl.program_id(1) * groups_per_share
    last = tl.minimum(first + groups_per_share, tl.cdiv(inputs, GROUP))
    for group in range(first, last):
        start = group * GROUP
        is_input_D = d_D < inputs - start
        weight_OD = tl.load(
            levels_OD + start, mask=is_output_O[:, None] & is_input_D[None, :], other=0.0
        )
        rows_DN = tl.load(x_DN + start, mask=is_input_D[:, None] & is_row_N[None, :], other=0.0)
        part_ON = tl.dot(weight_OD, rows_DN)
        at_N = group * num_rows + n_N  # int32: rows times D / 128
        scale_N = tl.load(row_scales + at_N, mask=is_row_N, other=0)
        at = scales + group * num_blocks
        if TALL % BLOCK_O == 0:
            acc_ON += part_ON * (scale_N * tl.load(at + first_b))[None, :]
        else:
            scale_O = tl.load(at + b_O, mask=is_output_O, other=0)
            acc_ON += part_ON * (scale_O[:, None] * scale_N[None, :])
    finish(out, bias, acc_ON, n_N, o_O, num_rows, outputs, HAS_BIAS, IS_SHARE)


class BlockWeight(NamedTuple):
    """A weight as `linear_blocks` reads it."""

    levels_OD: torch.Tensor
    """float8_e4m3fn."""
    scales_GB: torch.Tensor
    """float32."""
    tall: int
    """Outputs of a block: those of the format, or 1."""
    group: int


def multiply_blocks(
    x_ND: torch.Tensor, weight: BlockWeight, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """[N, D] -> [N, O] in x's dtype; rows are rounded with a scale per group."""
    rows, outputs, inputs = len(x_ND), *weight.levels_OD.shape
    if not rows or not inputs:
        return nothing(x_ND, outputs, bias_O)
    levels_ND, scales_GN = quantize_row_groups(x_ND, weight.group)
    num_groups = len(weight.scales_GB)
    per_share = -(-num_groups // tile.shares)
    shares = -(-num_groups // per_share)
    target = target_of(x_ND, shares, outputs, torch.float32)
    grid = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs), shares
    linear_blocks[grid](
        levels_ND,
        weight.levels_OD,
        weight.scales_GB,
        scales_GN,
        x_ND if bias_O is None else bias_O,
        target,
        rows,
        outputs,
        inputs,
        weight.scales_GB.shape[1],
        per_share,
        TALL=weight.tall,
        GROUP=weight.group,
        HAS_BIAS=bias_O is not None,
        IS_SHARE=shares > 1,
        BLOCK_N=tile.rows,
        BLOCK_O=tile.outputs,
        BAND=tile.band,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return target if shares == 1 else add_shared(target, None, None, bias_O, x_ND.dtype)
