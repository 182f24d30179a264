"""What the compiled kernels do row by row: norms, gated activation, and what goes into attention.

Shape letters: N rows, D features; T tokens in the step, H query heads, G key/value heads, D head size, K half of what is
rotated.
"""

from __future__ import annotations

import torch
from torch import Tensor

from octavo.kernels.cpu.extension import address, native
from octavo.kernels.kv import CODES, KVTensors


def rms_norm(
    x_ND: Tensor,
    weight_D: Tensor,
    out_ND: Tensor,
    eps: float,
    *,
    residual_ND: Tensor | None = None,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Write x / sqrt(mean(x^2) + eps) * weight into `out_ND`; with a residual, x is added to it first, in place.

    Shapes: [..., D], weight [D]; all float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    shape = x_ND.shape
    residual = 0 if residual_ND is None else address("residual", residual_ND, shape)
    native.rms_norm(
        address("x", x_ND, shape),
        residual,
        address("weight", weight_D, shape[-1:]),
        address("out", out_ND, shape),
        x_ND.numel() // max(1, shape[-1]),
        shape[-1],
        eps,
        num_threads,
        isa,
    )


def silu_and_mul(x_NE: Tensor, out_ND: Tensor, *, num_threads: int = 1, isa: str = "") -> None:
    """Write silu(first half) * second half into `out_ND`. Shapes: [N, 2 D] -> [N, D], float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    rows, features = out_ND.shape
    out = address("out", out_ND, (rows, features))
    native.silu_and_mul(
        address("x", x_NE, (rows, 2 * features)), out, rows, features, num_threads, isa
    )


def layer_norm(
    x_ND: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None,
    out_ND: Tensor,
    eps: float,
    *,
    residual_ND: Tensor | None = None,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Write the layer norm of x into `out_ND`; with a residual, x is added to it first, in place.

    Shapes: [..., D], weight and bias [D]; all float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    shape = x_ND.shape
    native.layer_norm(
        address("x", x_ND, shape),
        0 if residual_ND is None else address("residual", residual_ND, shape),
        address("weight", weight_D, shape[-1:]),
        0 if bias_D is None else address("bias", bias_D, shape[-1:]),
        address("out", out_ND, shape),
        x_ND.numel() // max(1, shape[-1]),
        shape[-1],
        eps,
        num_threads,
        isa,
    )


CURVES = {"gelu": 0, "gelu_tanh": 1, "relu": 2}
"""The numbers are those of `Curve` in csrc/cpu/rows.h."""


def activate(
    x_NE: Tensor,
    out_ND: Tensor,
    curve: str,
    *,
    is_gated: bool = False,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Write curve(x) into `out_ND`; gated, curve(first half) * second half. All float32 and C-contiguous.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    rows, features = out_ND.shape
    native.activate(
        address("x", x_NE, (rows, 2 * features if is_gated else features)),
        address("out", out_ND, (rows, features)),
        rows,
        features,
        CURVES[curve],
        is_gated,
        num_threads,
        isa,
    )


def cache_addresses(cache: KVTensors, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Addresses of keys and values of `shape` [num_blocks, 16, G, D] and of their scales, 0 where there are none.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    dtype = cache.k.dtype
    k, v = address("k_cache", cache.k, shape, dtype), address("v_cache", cache.v, shape, dtype)
    if dtype is not torch.int8:
        return k, v, 0, 0
    if cache.k_scales is None or cache.v_scales is None:
        raise ValueError("an int8 cache has k_scales and v_scales.")
    k_scales = address("k_scales", cache.k_scales, shape[:3])
    return k, v, k_scales, address("v_scales", cache.v_scales, shape[:3])


def attention_inputs(
    qkv_TO: Tensor,
    norms: tuple[Tensor, Tensor, float] | None,
    angles: tuple[Tensor, Tensor],
    slots_T: Tensor,
    cache: KVTensors,
    q_THD: Tensor,
    *,
    num_threads: int = 1,
    isa: str = "",
) -> None:
    """Norm queries and keys per head (`norms`: weights [D] and eps), rotate them, store keys and values.

    Shapes: qkv [T, (H + 2 G) D], `angles` cos and sin [T, K], slots int64 [T] below blocks * 16, `cache` keys and values
    [num_blocks, 16, G, D]; the queries are written to `q_THD`. All float32, save the cache, and C-contiguous. The slots
    are not checked.

    Raises:
        ValueError: shapes, dtypes or layout do not fit.
    """
    num_tokens, heads, dim = q_THD.shape
    kv_heads, half = cache.k.shape[2], angles[0].shape[1]
    if cache.k.dtype not in CODES:
        raise ValueError(f"no cache of {cache.k.dtype}.")
    q_norm = 0 if norms is None else address("q_norm", norms[0], (dim,))
    k_norm = 0 if norms is None else address("k_norm", norms[1], (dim,))
    native.attention_inputs(
        address("qkv", qkv_TO, (num_tokens, (heads + 2 * kv_heads) * dim)),
        q_norm,
        k_norm,
        address("cos", angles[0], (num_tokens, half)),
        address("sin", angles[1], (num_tokens, half)),
        address("slots", slots_T, (num_tokens,), torch.int64),
        address("q", q_THD, q_THD.shape),
        CODES[cache.k.dtype],
        *cache_addresses(cache, (cache.k.shape[0], 16, kv_heads, dim)),
        num_tokens,
        heads,
        kv_heads,
        dim,
        2 * half,
        0.0 if norms is None else norms[2],
        num_threads,
        isa,
    )
