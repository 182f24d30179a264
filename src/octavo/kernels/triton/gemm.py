"""Products with quantized weights in Triton: int4 and int8 weights beside 16-bit rows, int8 and fp8 beside their like.

Outputs stand where a matrix unit has its long side and rows where it has its short one, so that a step of few rows
wastes little: each program makes BLOCK_O outputs of BLOCK_N rows, over all inputs or a share of them. Shares leave sums
in float32 (int32 for integers), which `add_shares` adds in order: no atomics, so that a result is the same bits every
time. The bits of a row depend on nothing but the row and the tile; `tiles.py` chooses tiles.

Shape letters: N rows, D inputs, O outputs, G groups of inputs, S shares.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from octavo.kernels.rounded import Rounded
from octavo.kernels.triton.quantize import quantize_rows
from octavo.kernels.triton.support import is_interpreting
from octavo.kernels.triton.tiles import Tile

_MAGIC = tl.constexpr(0x4B000000)
_MAGIC_VALUE = tl.constexpr(8388608.0)
"""2**23 as a float: or-ing an integer below 2**23 into its bits adds it, which is cheaper than a conversion."""


@triton.jit
def place(num_rows, outputs, BLOCK_N: tl.constexpr, BLOCK_O: tl.constexpr, BAND: tl.constexpr):
    """Rows int [BLOCK_N] and outputs int [BLOCK_O] of this program.

    Programs that run together share BAND blocks of rows, so that both operands are found in the L2 cache.
    """
    program = tl.program_id(0)
    blocks_n = tl.cdiv(num_rows, BLOCK_N)
    blocks_o = tl.cdiv(outputs, BLOCK_O)
    band = program // (BAND * blocks_o)
    height = tl.minimum(blocks_n - band * BAND, BAND)
    within = program % (BAND * blocks_o)
    block_n = band * BAND + within % height
    block_o = within // height
    n_N = block_n * BLOCK_N + tl.arange(0, BLOCK_N)
    o_O = block_o * BLOCK_O + tl.arange(0, BLOCK_O)
    return n_N, o_O


@triton.jit
def finish(
    out,
    bias,
    acc_ON,
    n_N,
    o_O,
    num_rows,
    outputs,
    HAS_BIAS: tl.constexpr,
    IS_SHARE: tl.constexpr,
):
    """Write a tile: with bias and in the output's dtype, or as this program's share of the sums."""
    is_inside_ON = (o_O < outputs)[:, None] & (n_N < num_rows)[None, :]
    if IS_SHARE:
        out += tl.program_id(1).to(tl.int64) * num_rows * outputs
    elif HAS_BIAS:
        acc_ON += tl.load(bias + o_O, mask=o_O < outputs, other=0).to(tl.float32)[:, None]
    at_ON = n_N.to(tl.int64)[None, :] * outputs + o_O[:, None]
    tl.store(out + at_ON, acc_ON.to(out.dtype.element_ty), mask=is_inside_ON)


@triton.jit(do_not_specialize=["num_rows"])
def linear_w4(
    x,
    levels,
    scales,
    zeros,
    bias,
    out,
    num_rows,
    outputs,
    inputs,
    num_blocks,
    blocks_per_share,
    GROUP: tl.constexpr,
    HALF: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SHARE: tl.constexpr,
    SCALES_WEIGHTS: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BAND: tl.constexpr,
):
    """Rows [N, D] by int4 weights: levels uint8 [O, blocks * HALF], scales in 16 or 32 bits and zeros uint8 [G, O].

    A block of 2 HALF inputs is HALF bytes: input j in the low half of byte j, input HALF + j in its high half, so that
    both halves are whole operands and nothing has to be interleaved. HALF divides GROUP: a product of one half has one
    scale per output, which is applied to the sum in float32 where SCALES_WEIGHTS is false. Then nothing is rounded but
    sums. Where it is true, for many rows, weights are scaled and rounded to DOT first.
    """
    n_N, o_O = place(num_rows, outputs, BLOCK_N, BLOCK_O, BAND)
    j_B = tl.arange(0, HALF)
    is_row_N, is_output_O = n_N < num_rows, o_O < outputs
    row_bytes = num_blocks * HALF
    levels_OB = levels + o_O.to(tl.int64)[:, None] * row_bytes + j_B[None, :]
    x_BN = x + n_N.to(tl.int64)[None, :] * inputs + j_B[:, None]
    acc_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
    first = tl.program_id(1) * blocks_per_share
    for block in range(first, tl.minimum(first + blocks_per_share, num_blocks)):
        bytes_OB = tl.load(levels_OB + block * HALF, mask=is_output_O[:, None], other=0).to(
            tl.int32
        )
        part_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
        for half in tl.static_range(2):
            d_B = (2 * block + half) * HALF + j_B
            is_inside_BN = (d_B < inputs)[:, None] & is_row_N[None, :]
            x_half_BN = tl.load(x_BN + (2 * block + half) * HALF, mask=is_inside_BN, other=0)
            at_O = (
                2 * block + half
            ) * HALF // GROUP * outputs + o_O  # int32: O times D / 32 at most
            zero_O = tl.full([BLOCK_O], 8.0, tl.float32)
            if HAS_ZEROS:
                zero_O = tl.load(zeros + at_O, mask=is_output_O, other=0).to(tl.float32)
            bits_OB = ((bytes_OB >> (4 * half)) & 15) | _MAGIC
            weight_OB = bits_OB.to(tl.float32, bitcast=True) - (zero_O + _MAGIC_VALUE)[:, None]
            if SCALES_WEIGHTS:
                scale_O = tl.load(scales + at_O, mask=is_output_O, other=0).to(tl.float32)
                weight_OB = weight_OB * scale_O[:, None]
                acc_ON = tl.dot(weight_OB.to(x.dtype.element_ty).to(DOT), x_half_BN.to(DOT), acc_ON)
            else:
                part_ON = tl.dot(weight_OB.to(DOT), x_half_BN.to(DOT), part_ON)
                if half == 1 or GROUP == HALF:
                    scale_O = tl.load(scales + at_O, mask=is_output_O, other=0).to(tl.float32)
                    acc_ON += part_ON * scale_O[:, None]
                    part_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
    finish(out, bias, acc_ON, n_N, o_O, num_rows, outputs, HAS_BIAS, IS_SHARE)


@triton.jit(do_not_specialize=["num_rows"])
def linear_w8(
    x,
    levels,
    scales,
    row_scales,
    bias,
    out,
    num_rows,
    outputs,
    inputs,
    inputs_per_share,
    HAS_BIAS: tl.constexpr,
    IS_SHARE: tl.constexpr,
    SUMS: tl.constexpr,
    DOT: tl.constexpr,
    HAS_ROW_SCALES: tl.constexpr,
    IS_FP8: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BAND: tl.constexpr,
):
    """Rows [N, D] by 8-bit weights [O, D] with float32 scales [O].

    Rows are 16-bit and the weights become so (DOT), or both are int8 or e4m3 as they are, and the rows have scales [N].
    SUMS is int32 for integers, whose sums are exact in any tile, else float32. A matrix unit keeps the sums of e4m3 in
    fewer bits than float32: they leave it after each block of inputs.
    """
    n_N, o_O = place(num_rows, outputs, BLOCK_N, BLOCK_O, BAND)
    is_row_N, is_output_O = n_N < num_rows, o_O < outputs
    first = tl.program_id(1) * inputs_per_share
    last = tl.minimum(first + inputs_per_share, inputs)
    acc_ON = tl.zeros([BLOCK_O, BLOCK_N], SUMS)
    for start in range(first, last, BLOCK_D):
        d_D = start + tl.arange(0, BLOCK_D)
        is_input_D = d_D < last
        levels_OD = levels + o_O.to(tl.int64)[:, None] * inputs + d_D[None, :]
        x_DN = x + n_N.to(tl.int64)[None, :] * inputs + d_D[:, None]
        weight_OD = tl.load(levels_OD, mask=is_output_O[:, None] & is_input_D[None, :], other=0.0)
        rows_DN = tl.load(x_DN, mask=is_input_D[:, None] & is_row_N[None, :], other=0.0)
        if not HAS_ROW_SCALES:
            weight_OD, rows_DN = weight_OD.to(tl.float32).to(DOT), rows_DN.to(DOT)
        if IS_FP8:
            acc_ON = tl.dot(weight_OD, rows_DN, acc_ON, max_num_imprecise_acc=BLOCK_D)
        else:
            acc_ON = tl.dot(weight_OD, rows_DN, acc_ON, out_dtype=SUMS)
    if not IS_SHARE:
        acc_ON = acc_ON.to(tl.float32)
        acc_ON *= tl.load(scales + o_O, mask=is_output_O, other=0)[:, None]
        if HAS_ROW_SCALES:
            acc_ON *= tl.load(row_scales + n_N, mask=is_row_N, other=0)[None, :]
    finish(out, bias, acc_ON, n_N, o_O, num_rows, outputs, HAS_BIAS, IS_SHARE)


@triton.jit(do_not_specialize=["num_rows"])
def add_shares(
    shares,
    scales,
    row_scales,
    bias,
    out,
    num_rows,
    outputs,
    num_shares,
    HAS_SCALES: tl.constexpr,
    HAS_ROW_SCALES: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [N, O] = shares [S, N, O] added in order, times scales [O] and [N], plus bias [O]."""
    row = tl.program_id(0).to(tl.int64)
    o_B = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_inside_B = o_B < outputs
    at_B = row * outputs + o_B
    sum_B = tl.zeros([BLOCK], shares.dtype.element_ty)
    for _ in range(num_shares):
        sum_B += tl.load(shares + at_B, mask=is_inside_B, other=0)
        shares += num_rows.to(tl.int64) * outputs
    result_B = sum_B.to(tl.float32)
    if HAS_SCALES:
        result_B *= tl.load(scales + o_B, mask=is_inside_B, other=0)
    if HAS_ROW_SCALES:
        result_B *= tl.load(row_scales + row)
    if HAS_BIAS:
        result_B += tl.load(bias + o_B, mask=is_inside_B, other=0).to(tl.float32)
    tl.store(out + at_B, result_B.to(out.dtype.element_ty), mask=is_inside_B)


class Int4Weight(NamedTuple):
    """An int4 weight as `linear_w4` reads it."""

    levels_OB: torch.Tensor
    """uint8: two levels a byte."""
    scales_GO: torch.Tensor
    """bfloat16 of what is rounded at load, see `formats.py`; of a checkpoint bfloat16, float16 or float32."""
    zeros_GO: torch.Tensor | None
    """uint8."""
    num_inputs: int
    group: int

    @property
    def half(self) -> int:
        """Bytes of a block, and inputs of one product."""
        return half_of(self.group)


class Weight8(NamedTuple):
    """An 8-bit weight as `linear_w8` reads it."""

    levels_OD: torch.Tensor
    """int8 or float8_e4m3fn."""
    scales_O: torch.Tensor
    """float32."""


def half_of(group: int) -> int:
    """Inputs of one product with int4 weights: those of half a block. Divides `group`."""
    return min(group, 64)


def _dot_type(dtype: torch.dtype) -> tl.dtype:
    """What 16-bit operands are multiplied as. The interpreter has no products of bfloat16."""
    if dtype == torch.bfloat16:
        return tl.float32 if is_interpreting() else tl.bfloat16
    return tl.float16


def multiply_int4(
    x_ND: torch.Tensor, weight: Int4Weight, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """[N, D] -> [N, O] in x's dtype, which is a 16-bit one."""
    x_ND = x_ND.contiguous()
    rows, outputs = len(x_ND), len(weight.levels_OB)
    num_blocks = weight.levels_OB.shape[1] // weight.half
    if not rows or not num_blocks:
        return nothing(x_ND, outputs, bias_O)
    per_share = -(-num_blocks // tile.shares)
    shares = -(-num_blocks // per_share)
    target = target_of(x_ND, shares, outputs, torch.float32)
    linear_w4[_grid(rows, outputs, tile, shares)](
        x_ND,
        weight.levels_OB,
        weight.scales_GO,
        weight.zeros_GO if weight.zeros_GO is not None else weight.levels_OB,
        x_ND if bias_O is None else bias_O,
        target,
        rows,
        outputs,
        weight.num_inputs,
        num_blocks,
        per_share,
        GROUP=weight.group,
        HALF=weight.half,
        HAS_ZEROS=weight.zeros_GO is not None,
        HAS_BIAS=bias_O is not None,
        IS_SHARE=shares > 1,
        SCALES_WEIGHTS=tile.scales_weights,
        DOT=_dot_type(x_ND.dtype),
        BLOCK_N=tile.rows,
        BLOCK_O=tile.outputs,
        BAND=tile.band,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return target if shares == 1 else add_shared(target, None, None, bias_O, x_ND.dtype)


def multiply_int8(
    x_ND: torch.Tensor, weight: Weight8, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """[N, D] in a 16-bit dtype by int8 levels -> [N, O] in x's dtype."""
    return _multiply_8(x_ND.contiguous(), None, weight, bias_O, tile, x_ND.dtype)


def multiply_levels(
    x_ND: torch.Tensor, weight: Weight8, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """[N, D] -> [N, O] in x's dtype; rows are rounded to the weight's own type, with one scale each."""
    levels_ND, scales_N = quantize_rows(x_ND, weight.levels_OD.dtype)
    return multiply_rounded(Rounded(levels_ND, scales_N, x_ND.dtype), weight, bias_O, tile)


def multiply_rounded(
    rounded: Rounded, weight: Weight8, bias_O: torch.Tensor | None, tile: Tile
) -> torch.Tensor:
    """[N, D] -> [N, O] of rows that are rounded to the weight's own type."""
    return _multiply_8(rounded.levels_ND, rounded.scales_N, weight, bias_O, tile, rounded.dtype)


def _multiply_8(
    x_ND: torch.Tensor,
    scales_N: torch.Tensor | None,
    weight: Weight8,
    bias_O: torch.Tensor | None,
    tile: Tile,
    dtype: torch.dtype,
) -> torch.Tensor:
    rows, outputs, inputs = len(x_ND), *weight.levels_OD.shape
    if not rows or not inputs:
        return nothing(x_ND.to(dtype), outputs, bias_O)
    turns = -(-inputs // tile.inputs)
    per_share = -(-turns // tile.shares) * tile.inputs
    shares = -(-inputs // per_share)
    is_fp8 = weight.levels_OD.dtype == torch.float8_e4m3fn
    sums = torch.int32 if scales_N is not None and not is_fp8 else torch.float32
    target = target_of(x_ND, shares, outputs, sums, dtype)
    linear_w8[_grid(rows, outputs, tile, shares)](
        x_ND,
        weight.levels_OD,
        weight.scales_O,
        weight.scales_O if scales_N is None else scales_N,
        weight.scales_O if bias_O is None else bias_O,
        target,
        rows,
        outputs,
        inputs,
        per_share,
        HAS_BIAS=bias_O is not None,
        IS_SHARE=shares > 1,
        SUMS=tl.int32 if sums == torch.int32 else tl.float32,
        DOT=_dot_type(dtype),
        HAS_ROW_SCALES=scales_N is not None,
        IS_FP8=is_fp8,
        BLOCK_N=tile.rows,
        BLOCK_O=tile.outputs,
        BLOCK_D=tile.inputs,
        BAND=tile.band,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return target if shares == 1 else add_shared(target, weight.scales_O, scales_N, bias_O, dtype)


def _grid(rows: int, outputs: int, tile: Tile, shares: int) -> tuple[int, int]:
    return triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs), shares


def target_of(
    x_ND: torch.Tensor,
    shares: int,
    outputs: int,
    sums: torch.dtype,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The output [N, O], or [S, N, O] for the shares of its sums."""
    if shares == 1:
        return x_ND.new_empty(len(x_ND), outputs, dtype=dtype or x_ND.dtype)
    return x_ND.new_empty(shares, len(x_ND), outputs, dtype=sums)


def add_shared(
    shares_SNO: torch.Tensor,
    scales_O: torch.Tensor | None,
    scales_N: torch.Tensor | None,
    bias_O: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The sum [N, O] of what programs left [S, N, O], scaled, with bias."""
    num_shares, rows, outputs = shares_SNO.shape
    out_NO = shares_SNO.new_empty(rows, outputs, dtype=dtype)
    block = 1024 if rows < 64 else 2048
    add_shares[(rows, triton.cdiv(outputs, block))](
        shares_SNO,
        shares_SNO if scales_O is None else scales_O,
        shares_SNO if scales_N is None else scales_N,
        out_NO if bias_O is None else bias_O,
        out_NO,
        rows,
        outputs,
        num_shares,
        HAS_SCALES=scales_O is not None,
        HAS_ROW_SCALES=scales_N is not None,
        HAS_BIAS=bias_O is not None,
        BLOCK=block,
        num_warps=4,
    )
    return out_NO


def nothing(x_ND: torch.Tensor, outputs: int, bias_O: torch.Tensor | None) -> torch.Tensor:
    """What rows without inputs, or no rows, give."""
    out_NO = x_ND.new_zeros(len(x_ND), outputs)
    return out_NO if bias_O is None else out_NO + bias_O
