"""What attention needs of a projected row, in one pass: norms of queries and keys, rotation, and the store into the cache.

Shape letters as in `kernels/ops.py`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.kv import LARGEST, KVTensors
from octavo.kernels.ops import QkNorm
from octavo.kernels.triton.shared import INTERPRETED

LEAST_FP8 = tl.constexpr(2.0**-119)
"""As in `kernels/kv.py`."""


@triton.jit
def _rounded(x):
    """To the nearest integer, ties to even: adding 1.5 * 2^23 leaves no bit for less. For magnitudes up to 127."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _rounded_to_fp8(x):
    """To the nearest number that float8_e4m3fn has, still float32.

    The interpreter cuts bits off where devices round (triton 3.9), so there this comes first. Four bits by Dekker's
    splitting; below 2^-6, multiples of 2^-9.
    """
    parts = x * 1048577.0
    return tl.where(tl.abs(x) < 0.015625, (x + 24576.0) - 24576.0, parts - (parts - x))


@triton.jit
def _keep(
    x_D,
    kept,
    scales,
    slot,
    head,
    i_D,
    is_there_D,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """Write one head's row into its slot of the cache, in the cache's dtype. LARGEST is its largest level, 0 without scales."""
    row = slot * KV_HEADS + head
    if LARGEST > 0:
        largest = tl.max(tl.abs(x_D), 0)
        if LARGEST == 448:
            largest = tl.where(largest <= LEAST_FP8, 0.0, largest)
        inverse = tl.where(largest > 0, LARGEST / largest, 0.0)
        x_D = x_D * inverse
        if LARGEST == 127:
            x_D = _rounded(x_D)
        else:  # saturates, as the type has no infinity
            x_D = tl.minimum(tl.maximum(x_D, -LARGEST), LARGEST)
            if INTERPRETED:
                x_D = _rounded_to_fp8(x_D)
        tl.store(scales + row, largest / LARGEST)
    tl.store(kept + row * DIM + i_D, x_D.to(kept.dtype.element_ty), mask=is_there_D)


@triton.jit
def _prepare(
    qkv,
    q_weight,
    k_weight,
    cos,
    sin,
    slots,
    q_out,
    k,
    v,
    k_scales,
    v_scales,
    qkv_stride,
    eps,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    HALF: tl.constexpr,
    HAS_NORM: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """One head of one token: a query is written out, a key or value stored. Features 2 HALF and on pass unrotated."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i_D = tl.arange(0, PADDED)
    is_there_D = i_D < DIM
    row = qkv + token * qkv_stride + head * DIM
    x_D = tl.load(row + i_D, mask=is_there_D, other=0.0)
    dtype = x_D.dtype
    if head >= HEADS + KV_HEADS:
        slot = tl.load(slots + token)
        _keep(
            x_D.to(tl.float32), v, v_scales, slot, head - HEADS - KV_HEADS, i_D, is_there_D,
            KV_HEADS, DIM, LARGEST,
        )  # fmt: skip
    else:
        is_left_D = i_D < HALF
        is_rotated_D = i_D < 2 * HALF
        # Feature i turns with feature i + HALF; what is loaded again lies in the cache of the same core.
        other_D = tl.where(is_left_D, i_D + HALF, i_D - HALF)
        pair_D = tl.load(row + other_D, mask=is_rotated_D, other=0.0)
        if HAS_NORM:
            wide_D = x_D.to(tl.float32)
            factor = tl.rsqrt(tl.sum(wide_D * wide_D, 0) / DIM + eps)
            weight = q_weight if head < HEADS else k_weight
            weight_D = tl.load(weight + i_D, mask=is_there_D, other=0.0).to(tl.float32)
            other_weight_D = tl.load(weight + other_D, mask=is_rotated_D, other=0.0).to(tl.float32)
            x_D = (weight_D * (wide_D * factor).to(dtype).to(tl.float32)).to(dtype)
            other_x_D = (pair_D.to(tl.float32) * factor).to(dtype).to(tl.float32)
            pair_D = (other_weight_D * other_x_D).to(dtype)
        angle_D = tl.where(is_left_D, i_D, i_D - HALF)
        at_D = token * HALF + angle_D
        cos_D = tl.load(cos + at_D, mask=is_rotated_D, other=1.0)
        sin_D = tl.load(sin + at_D, mask=is_rotated_D, other=0.0)
        sin_D = tl.where(is_left_D, -sin_D, sin_D)
        turned_D = x_D.to(tl.float32) * cos_D + pair_D.to(tl.float32) * sin_D
        turned_D = turned_D.to(dtype)
        if head < HEADS:
            tl.store(q_out + (token * HEADS + head) * DIM + i_D, turned_D, mask=is_there_D)
        else:
            slot = tl.load(slots + token)
            _keep(
                turned_D.to(tl.float32), k, k_scales, slot, head - HEADS, i_D, is_there_D,
                KV_HEADS, DIM, LARGEST,
            )  # fmt: skip


def attention_inputs(
    qkv_TO: Tensor,
    norms: QkNorm | None,
    angles: tuple[Tensor, Tensor],
    slots_T: Tensor,
    cache: KVTensors,
) -> Tensor:
    """As `ops.attention_inputs`."""
    kv_heads, dim = cache.k.shape[2:]
    tokens, heads = qkv_TO.shape[0], qkv_TO.shape[1] // dim - 2 * kv_heads
    q_THD = torch.empty((tokens, heads, dim), dtype=qkv_TO.dtype, device=qkv_TO.device)
    if tokens == 0:
        return q_THD
    qkv_TO = qkv_TO if qkv_TO.stride(1) == 1 else qkv_TO.contiguous()
    cos_TK, sin_TK = (angle.contiguous() for angle in angles)
    padded = triton.next_power_of_2(dim)
    _prepare[(tokens, heads + 2 * kv_heads)](
        qkv_TO,
        qkv_TO if norms is None else norms.q_weight_D,
        qkv_TO if norms is None else norms.k_weight_D,
        cos_TK,
        sin_TK,
        slots_T,
        q_THD,
        cache.k,
        cache.v,
        cache.k if cache.k_scales is None else cache.k_scales,
        cache.v if cache.v_scales is None else cache.v_scales,
        qkv_TO.stride(0),
        0.0 if norms is None else norms.eps,
        HEADS=heads,
        KV_HEADS=kv_heads,
        DIM=dim,
        PADDED=padded,
        HALF=cos_TK.shape[1],
        HAS_NORM=norms is not None,
        LARGEST=LARGEST.get(cache.k.dtype, 0.0),
        num_warps=1,
    )
    return q_THD
