"""The catalogue of ops: signature, shapes and plain-torch reference of each. Knows nothing of models or sequences.

Every other candidate of an op is measured against the function here. Inner arithmetic is float32, results come back
in the input's dtype, which is what the checkpoints' own reference implementation (transformers) does.

Shape letters: T tokens, N rows of anything, D features, O output features, H heads, K rotated half of a head,
P slots in the pool (blocks * BLOCK_SIZE).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from octavo.kernels.curves import Curve
from octavo.kernels.dispatch import Function
from octavo.kernels.kv import KVTensors, quantize, scatter
from octavo.kernels.rounded import LEVEL_DTYPES, Rounded, quantize_whole_rows


def rms_norm(x_ND: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last axis (https://arxiv.org/abs/1910.07467).

    Shapes: x [..., D], weight [D] -> [..., D], in x's dtype.
    """
    wide_ND = x_ND.float()
    wide_ND = wide_ND * torch.rsqrt(wide_ND.square().mean(-1, keepdim=True) + eps)
    return weight_D * wide_ND.to(x_ND.dtype)


def add_rms_norm(
    x_ND: torch.Tensor, residual_ND: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(rms_norm(x + residual), x + residual)`; the sum is rounded to x's dtype before the norm.

    Shapes: x and residual [N, D], weight [D] -> two of [N, D]. May overwrite x and residual.
    """
    sum_ND = x_ND + residual_ND
    return rms_norm(sum_ND, weight_D, eps), sum_ND


def add_rms_norm_rounded(
    x_ND: torch.Tensor,
    residual_ND: torch.Tensor | None,
    weight_D: torch.Tensor,
    eps: float,
    kind: str,
) -> tuple[Rounded, torch.Tensor]:
    """As `add_rms_norm`, its first result rounded to `kind` (int8 or fp8) with a scale per row. No residual counts as zero."""
    sum_ND = x_ND if residual_ND is None else x_ND + residual_ND
    levels_ND, scales_N = quantize_whole_rows(rms_norm(sum_ND, weight_D, eps), kind)
    return Rounded(levels_ND.to(LEVEL_DTYPES[kind]), scales_N, x_ND.dtype), sum_ND


def layer_norm(
    x_ND: torch.Tensor, weight_D: torch.Tensor, bias_D: torch.Tensor | None, eps: float
) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis (https://arxiv.org/abs/1607.06450).

    Shapes: x [N, D], weight and bias [D] -> [N, D], in x's dtype.
    """
    return F.layer_norm(x_ND, weight_D.shape, weight_D, bias_D, eps)


def add_layer_norm(
    x_ND: torch.Tensor,
    residual_ND: torch.Tensor,
    weight_D: torch.Tensor,
    bias_D: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`(layer_norm(x + residual), x + residual)`. May overwrite x and residual. Shapes as `add_rms_norm`."""
    sum_ND = x_ND + residual_ND
    return layer_norm(sum_ND, weight_D, bias_D, eps), sum_ND


def activate(x_ND: torch.Tensor, curve: Curve) -> torch.Tensor:
    """curve(x). Shapes: [N, D] -> [N, D]. May overwrite x."""
    if curve == "relu":
        return F.relu(x_ND)
    return F.gelu(x_ND, approximate="tanh" if curve == "gelu_tanh" else "none")


def activate_and_mul(x_ND: torch.Tensor, curve: Curve) -> torch.Tensor:
    """curve(first half) * second half (GLU variants, https://arxiv.org/abs/2002.05202). Shapes: [N, 2D] -> [N, D]."""
    gate_ND, up_ND = x_ND.chunk(2, dim=-1)
    return activate(gate_ND, curve) * up_ND


def rope(
    q_THD: torch.Tensor, k_THD: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate queries and keys by position, neox style: feature i pairs with feature i + K.

    Shapes: q [T, H, D], k [T, H', D], cos and sin float32 [T, K] with 2K <= D -> same shapes as q and k. Features from
    2K on pass unchanged. Source: https://arxiv.org/abs/2104.09864, pairing as in GPT-NeoX.
    """
    return _rotate(q_THD, cos_TK, sin_TK), _rotate(k_THD, cos_TK, sin_TK)


def _rotate(x_THD: torch.Tensor, cos_TK: torch.Tensor, sin_TK: torch.Tensor) -> torch.Tensor:
    half = cos_TK.shape[-1]
    cos_T1K, sin_T1K = cos_TK.unsqueeze(1), sin_TK.unsqueeze(1)
    left_THK, right_THK = x_THD[..., :half].float(), x_THD[..., half : 2 * half].float()
    parts = [
        (left_THK * cos_T1K - right_THK * sin_T1K).to(x_THD.dtype),
        (right_THK * cos_T1K + left_THK * sin_T1K).to(x_THD.dtype),
    ]
    if 2 * half < x_THD.shape[-1]:
        parts.append(x_THD[..., 2 * half :])
    return torch.cat(parts, dim=-1)


def silu_and_mul(x_ND: torch.Tensor) -> torch.Tensor:
    """silu(first half) * second half (SwiGLU, https://arxiv.org/abs/2002.05202). Shapes: [N, 2D] -> [N, D]."""
    gate_ND, up_ND = x_ND.chunk(2, dim=-1)
    return F.silu(gate_ND) * up_ND


def embedding(token_ids_T: torch.Tensor, weight_VD: torch.Tensor) -> torch.Tensor:
    """Rows of the table. Shapes: int64 [T], [V, D] -> [T, D]."""
    return F.embedding(token_ids_T, weight_VD)


def linear(
    x_ND: torch.Tensor, weight_OD: torch.Tensor, bias_O: torch.Tensor | None
) -> torch.Tensor:
    """X @ weight^T + bias. Shapes: [N, D], [O, D], [O] or None -> [N, O]."""
    return F.linear(x_ND, weight_OD, bias_O)


def kv_store(
    k_THD: torch.Tensor, v_THD: torch.Tensor, cache: KVTensors, slots_T: torch.Tensor
) -> None:
    """Write keys and values of T tokens into the paged cache, in place and in its dtype.

    Shapes: k and v [T, H, D], slots int64 [T] = block * BLOCK_SIZE + offset. Other slots are untouched.
    """
    for rows_THD, values, scales in (
        (k_THD, cache.k, cache.k_scales),
        (v_THD, cache.v, cache.v_scales),
    ):
        if scales is None:
            scatter(values, rows_THD.to(values.dtype), slots_T)
        else:
            levels_THD, scales_TH = quantize(rows_THD, values.dtype)
            scatter(values, levels_THD, slots_T)
            scales.flatten(0, 1).index_copy_(0, slots_T, scales_TH)


class QkNorm(NamedTuple):
    """RMS norms of queries and keys, per head."""

    q_weight_D: torch.Tensor
    k_weight_D: torch.Tensor
    eps: float


def attention_inputs(
    qkv_TO: torch.Tensor,
    norms: QkNorm | None,
    angles: tuple[torch.Tensor, torch.Tensor],
    slots_T: torch.Tensor,
    cache: KVTensors,
) -> torch.Tensor:
    """Split projected rows, norm queries and keys where asked, rotate both, store keys and values; the queries.

    Shapes: qkv [T, (H + 2 G) D], `angles` cos and sin as in `rope`, slots and cache as in `kv_store` -> [T, H, D].
    """
    kv_heads, dim = cache.k.shape[2:]
    rows_THD = qkv_TO.view(qkv_TO.shape[0], qkv_TO.shape[1] // dim, dim)
    sizes = (rows_THD.shape[1] - 2 * kv_heads, kv_heads, kv_heads)
    q_THD, k_THD, v_THD = rows_THD.split_with_sizes(sizes, dim=1)
    if norms is not None:
        q_THD = rms_norm(q_THD, norms.q_weight_D, norms.eps)
        k_THD = rms_norm(k_THD, norms.k_weight_D, norms.eps)
    q_THD, k_THD = rope(q_THD, k_THD, *angles)
    kv_store(k_THD, v_THD, cache, slots_T)
    return q_THD


TORCH_RMS_NORM = Function(rms_norm, adds_up=True)
TORCH_ADD_RMS_NORM = Function(add_rms_norm, adds_up=True)
TORCH_ADD_RMS_NORM_ROUNDED = Function(add_rms_norm_rounded, adds_up=True)
TORCH_SILU_AND_MUL = Function(silu_and_mul)
TORCH_LAYER_NORM = Function(layer_norm, adds_up=True)
TORCH_ADD_LAYER_NORM = Function(add_layer_norm, adds_up=True)
TORCH_ACTIVATE = Function(activate)
TORCH_ACTIVATE_AND_MUL = Function(activate_and_mul)
TORCH_EMBEDDING = Function(embedding)
TORCH_ATTENTION_INPUTS = Function(attention_inputs, adds_up=True)
