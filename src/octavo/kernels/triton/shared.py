"""What several kernels need."""

import triton
import triton.language as tl

from octavo.kernels.triton.support import is_interpreting

INTERPRETED = tl.constexpr(is_interpreting())


@triton.jit
def dot(a, b, sum, PRECISION: tl.constexpr = "tf32"):
    """`sum` + a b, float32. PRECISION is that of float32 operands.

    The interpreter multiplies the bits of bfloat16 as integers (triton 3.9), so that operands are widened there, which
    changes no product; and to float64, because the sums of numpy's float32 depend on where in the tile a row stands, which
    those of matrix units do not.
    """
    if INTERPRETED:
        part = tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64)
        sum += part.to(tl.float32)
    else:
        sum = tl.dot(a, b, sum, input_precision=PRECISION)
    return sum


@triton.jit
def widen(x, like):
    """`x`, int8 or float8 perhaps, in the dtype of `like`, which holds all its values.

    The interpreter gets integers as bfloat16 wrong unless they are float32 between (triton 3.9).
    """
    if INTERPRETED:
        x = x.to(tl.float32)
    return x.to(like.dtype)


@triton.jit
def row_with_residual(x, residual, i_D, is_there_D, HAS_RESIDUAL: tl.constexpr):
    """One row, and where there is a residual the sum with it in the row's dtype, which is written over it."""
    x_D = tl.load(x + i_D, mask=is_there_D, other=0.0)
    if HAS_RESIDUAL:
        residual_D = tl.load(residual + i_D, mask=is_there_D, other=0.0)
        x_D = (x_D.to(tl.float32) + residual_D.to(tl.float32)).to(x_D.dtype)
        tl.store(residual + i_D, x_D, mask=is_there_D)
    return x_D
