"""Operations on rows: norms, activations, gathers. One program per row, or per part of one; one read, one write.

Sums are float32 in an order that depends on the row's length alone. Signatures and results as in `kernels/ops.py`;
shape letters there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.curves import Curve
from octavo.kernels.triton.shared import row_with_residual

CURVES: dict[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
PART = 1024
"""Features that one program of an elementwise operation takes: 16 bytes per thread of four warps, and a bit."""
_RSQRT2 = tl.constexpr(0.7071067811865476)
_TANH_SCALE = tl.constexpr(0.7978845608028654)
_TANH_CUBE = tl.constexpr(0.044715)
_LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _norm(
    x,
    residual,
    weight,
    bias,
    out,
    x_stride,
    eps,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_CENTERED: tl.constexpr,
):
    """One row: perhaps the sum with a residual, written over it, then RMS norm or (IS_CENTERED) layer norm."""
    row = tl.program_id(0).to(tl.int64)
    i_D = tl.arange(0, PADDED)
    is_there_D = i_D < SIZE
    x_D = row_with_residual(
        x + row * x_stride, residual + row * SIZE, i_D, is_there_D, HAS_RESIDUAL
    )
    wide_D = x_D.to(tl.float32)
    weight_D = tl.load(weight + i_D, mask=is_there_D, other=0.0)
    if IS_CENTERED:
        wide_D = tl.where(is_there_D, wide_D - tl.sum(wide_D, 0) / SIZE, 0.0)
    wide_D = wide_D * tl.rsqrt(tl.sum(wide_D * wide_D, 0) / SIZE + eps)
    if IS_CENTERED:
        out_D = wide_D * weight_D.to(tl.float32)
        if HAS_BIAS:
            out_D += tl.load(bias + i_D, mask=is_there_D, other=0.0).to(tl.float32)
    else:  # rounded before the weight, as checkpoints were trained
        out_D = wide_D.to(x_D.dtype).to(tl.float32) * weight_D.to(tl.float32)
    tl.store(out + row * SIZE + i_D, out_D.to(x_D.dtype), mask=is_there_D)


@triton.jit
def _curved(x, CURVE: tl.constexpr):
    """An activation of float32."""
    if CURVE == 0:
        x = x / (1.0 + tl.exp2(-x * _LOG2E))
    elif CURVE == 1:
        x = 0.5 * x * (1.0 + tl.erf(x * _RSQRT2))
    elif CURVE == 2:
        inner = _TANH_SCALE * (x + _TANH_CUBE * x * x * x)
        x = x / (1.0 + tl.exp2(-2.0 * inner * _LOG2E))  # (1 + tanh y) / 2 is sigmoid 2y
    else:
        x = tl.where(x < 0, 0.0, x)
    return x


@triton.jit
def _activate(
    x,
    out,
    x_stride,
    SIZE: tl.constexpr,
    PART: tl.constexpr,
    CURVE: tl.constexpr,
    IS_GATED: tl.constexpr,
):
    """A part of a row: curve(x), times the second half of x where gated; x has SIZE features, or twice as many."""
    row = tl.program_id(0).to(tl.int64)
    i_D = tl.program_id(1) * PART + tl.arange(0, PART)
    is_there_D = i_D < SIZE
    x_D = tl.load(x + row * x_stride + i_D, mask=is_there_D, other=0.0)
    out_D = _curved(x_D.to(tl.float32), CURVE).to(x_D.dtype)
    if IS_GATED:
        up_D = tl.load(x + row * x_stride + SIZE + i_D, mask=is_there_D, other=0.0)
        out_D = (out_D.to(tl.float32) * up_D.to(tl.float32)).to(x_D.dtype)
    tl.store(out + row * SIZE + i_D, out_D, mask=is_there_D)


@triton.jit
def _gather(ids, table, out, SIZE: tl.constexpr, PART: tl.constexpr):
    """A part of a row of the table."""
    row = tl.program_id(0).to(tl.int64)
    i_D = tl.program_id(1) * PART + tl.arange(0, PART)
    is_there_D = i_D < SIZE
    found = tl.load(ids + row)
    tl.store(
        out + row * SIZE + i_D,
        tl.load(table + found * SIZE + i_D, mask=is_there_D, other=0.0),
        mask=is_there_D,
    )


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `ops.rms_norm`; any number of axes before the last."""
    rows_ND = x_ND.reshape(-1, x_ND.shape[-1])
    return _norm_rows(rows_ND, None, weight_D, None, eps, is_centered=False).view(x_ND.shape)


def add_rms_norm(
    x_ND: Tensor, residual_ND: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `ops.add_rms_norm`; the sum is written over the residual."""
    residual_ND = residual_ND.contiguous()
    out_ND = _norm_rows(x_ND, residual_ND, weight_D, None, eps, is_centered=False)
    return out_ND, residual_ND


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """As `ops.layer_norm`."""
    return _norm_rows(x_ND, None, weight_D, bias_D, eps, is_centered=True)


def add_layer_norm(
    x_ND: Tensor, residual_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As `ops.add_layer_norm`; the sum is written over the residual."""
    residual_ND = residual_ND.contiguous()
    out_ND = _norm_rows(x_ND, residual_ND, weight_D, bias_D, eps, is_centered=True)
    return out_ND, residual_ND


def silu_and_mul(x_ND: Tensor) -> Tensor:
    """As `ops.silu_and_mul`."""
    return _activate_rows(x_ND, "silu", is_gated=True)


def activate(x_ND: Tensor, curve: Curve) -> Tensor:
    """As `ops.activate`."""
    return _activate_rows(x_ND, curve, is_gated=False)


def activate_and_mul(x_ND: Tensor, curve: Curve) -> Tensor:
    """As `ops.activate_and_mul`."""
    return _activate_rows(x_ND, curve, is_gated=True)


def embedding(token_ids_T: Tensor, weight_VD: Tensor) -> Tensor:
    """As `ops.embedding`. Ids must be in the table: nothing looks."""
    weight_VD = weight_VD.contiguous()
    size = weight_VD.shape[1]
    out_TD = weight_VD.new_empty(len(token_ids_T), size)
    if out_TD.numel():
        part = min(PART, triton.next_power_of_2(size))
        grid = (len(token_ids_T), triton.cdiv(size, part))
        _gather[grid](token_ids_T, weight_VD, out_TD, SIZE=size, PART=part, num_warps=4)
    return out_TD


def _norm_rows(
    x_ND: Tensor,
    residual_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    eps: float,
    *,
    is_centered: bool,
) -> Tensor:
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    rows, size = x_ND.shape
    out_ND = torch.empty((rows, size), dtype=x_ND.dtype, device=x_ND.device)
    if rows:
        padded = triton.next_power_of_2(size)
        _norm[(rows,)](
            x_ND,
            x_ND if residual_ND is None else residual_ND,
            weight_D,
            weight_D if bias_D is None else bias_D,
            out_ND,
            x_ND.stride(0),
            eps,
            SIZE=size,
            PADDED=padded,
            HAS_RESIDUAL=residual_ND is not None,
            HAS_BIAS=bias_D is not None,
            IS_CENTERED=is_centered,
            num_warps=min(16, max(1, padded // 512)),
        )
    return out_ND


def _activate_rows(x_ND: Tensor, curve: str, *, is_gated: bool) -> Tensor:
    x_ND = x_ND if x_ND.stride(-1) == 1 else x_ND.contiguous()
    rows, size = x_ND.shape[0], x_ND.shape[1] // (2 if is_gated else 1)
    out_ND = torch.empty((rows, size), dtype=x_ND.dtype, device=x_ND.device)
    if out_ND.numel():
        part = min(PART, triton.next_power_of_2(size))
        grid = (rows, triton.cdiv(size, part))
        kind = CURVES[curve]
        _activate[grid](
            x_ND,
            out_ND,
            x_ND.stride(0),
            SIZE=size,
            PART=part,
            CURVE=kind,
            IS_GATED=is_gated,
            num_warps=4,
        )
    return out_ND
