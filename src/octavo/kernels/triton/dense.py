"""Products with plain weights in Triton whose rows have the same bits in any batch: what a library, which picks tiles and
shares by the number of rows, does not promise.

One tile for any number of rows. The inputs are cut into shares by the weight's shape alone; each is summed from nothing and
shares are added in order. Few rows leave the shares to programs of their own and `add_shares` to add them; with many rows a
program sums one share after the other, which are the same additions. Shape letters as in `gemm.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels.triton.gemm import add_shared, finish, place
from octavo.kernels.triton.shared import dot

ROWS, OUTPUTS, INPUTS = 64, 128, 64
"""The tile. A decode of up to 64 rows reads each weight once."""
WIDE_INPUTS = 32
"""Inputs of one turn in float32, of which a tile holds half as many."""
PROGRAMS = 256
"""That one block of rows should have: two for each multiprocessor of a large GPU. The same on every device, so that bits are."""
MAX_SHARES = 8
MIN_SHARE = 512
BAND = 8


@triton.jit(do_not_specialize=["num_rows"])
def linear_dense(
    x,
    weight,
    bias,
    out,
    num_rows,
    outputs,
    inputs,
    inputs_per_share,
    num_shares,
    HAS_BIAS: tl.constexpr,
    IS_SHARE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BAND: tl.constexpr,
):
    """Rows [N, D] by weights [O, D] of one dtype. A program of a share leaves its sum; others add up all shares."""
    n_N, o_O = place(num_rows, outputs, BLOCK_N, BLOCK_O, BAND)
    is_row_N, is_output_O = n_N < num_rows, o_O < outputs
    total_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
    first_share, end_share = 0, num_shares
    if IS_SHARE:
        first_share = tl.program_id(1)
        end_share = first_share + 1
    for share in range(first_share, end_share):
        first = share * inputs_per_share
        last = tl.minimum(first + inputs_per_share, inputs)
        acc_ON = tl.zeros([BLOCK_O, BLOCK_N], tl.float32)
        for start in range(first, last, BLOCK_D):
            d_D = start + tl.arange(0, BLOCK_D)
            is_input_D = d_D < last
            weight_OD = tl.load(
                weight + o_O.to(tl.int64)[:, None] * inputs + d_D[None, :],
                mask=is_output_O[:, None] & is_input_D[None, :],
                other=0.0,
            )
            x_DN = tl.load(
                x + n_N.to(tl.int64)[None, :] * inputs + d_D[:, None],
                mask=is_input_D[:, None] & is_row_N[None, :],
                other=0.0,
            )
            acc_ON = dot(weight_OD, x_DN, acc_ON, PRECISION)
        total_ON += acc_ON
    finish(out, bias, total_ON, n_N, o_O, num_rows, outputs, HAS_BIAS, IS_SHARE)


def shares_of(outputs: int, inputs: int) -> tuple[int, int]:
    """How many shares, and inputs of each: of the weight's shape alone."""
    wanted = -(-PROGRAMS // -(-outputs // OUTPUTS))
    shares = max(1, min(wanted, MAX_SHARES, inputs // MIN_SHARE))
    per_share = -(-max(1, inputs) // shares // INPUTS) * INPUTS
    per_share = max(per_share, INPUTS)
    return -(-max(1, inputs) // per_share), per_share


def multiply(
    x_ND: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """[N, D], [O, D], [O] -> [N, O]."""
    x_ND = x_ND.contiguous()
    rows, outputs, inputs = len(x_ND), *weight_OD.shape
    shares, per_share = shares_of(outputs, inputs)
    are_apart = shares > 1 and rows <= ROWS
    if are_apart:
        out = x_ND.new_empty(shares, rows, outputs, dtype=torch.float32)
    else:
        out = x_ND.new_empty(rows, outputs)
    if not rows:
        return x_ND.new_empty(0, outputs)
    is_wide = x_ND.dtype == torch.float32
    blocks = triton.cdiv(rows, ROWS) * triton.cdiv(outputs, OUTPUTS)
    linear_dense[(blocks, shares if are_apart else 1)](
        x_ND,
        weight_OD,
        x_ND if bias_O is None else bias_O,
        out,
        rows,
        outputs,
        inputs,
        per_share,
        shares,
        HAS_BIAS=bias_O is not None,
        IS_SHARE=are_apart,
        PRECISION="ieee" if is_wide else "tf32",
        BLOCK_N=ROWS,
        BLOCK_O=OUTPUTS,
        BLOCK_D=WIDE_INPUTS if is_wide else INPUTS,
        BAND=BAND,
        num_warps=8 if is_wide else 4,
        num_stages=2 if is_wide else 4,
    )
    return add_shared(out, None, None, bias_O, x_ND.dtype) if are_apart else out
