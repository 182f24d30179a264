"""The ops a model is built of, each with its candidates as literal rows, preferred first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from octavo.core.registry import Registry
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.dispatch import Op, OpCase
from octavo.kernels.gemm.registry import LINEAR

if TYPE_CHECKING:
    from torch import Tensor

    Pair: TypeAlias = tuple[Tensor, Tensor]

RMS_NORM: Op[OpCase, Callable[[Tensor, Tensor, float], Tensor]] = Op(
    "rms_norm", Registry("rms_norm kernel", {"torch": "octavo.kernels.ops:TORCH_RMS_NORM"})
)
ADD_RMS_NORM: Op[OpCase, Callable[[Tensor, Tensor, Tensor, float], Pair]] = Op(
    "add_rms_norm",
    Registry("add_rms_norm kernel", {"torch": "octavo.kernels.ops:TORCH_ADD_RMS_NORM"}),
)
ROPE: Op[OpCase, Callable[[Tensor, Tensor, Tensor, Tensor], Pair]] = Op(
    "rope", Registry("rope kernel", {"torch": "octavo.kernels.ops:TORCH_ROPE"})
)
SILU_AND_MUL: Op[OpCase, Callable[[Tensor], Tensor]] = Op(
    "silu_and_mul",
    Registry("silu_and_mul kernel", {"torch": "octavo.kernels.ops:TORCH_SILU_AND_MUL"}),
)
EMBEDDING: Op[OpCase, Callable[[Tensor, Tensor], Tensor]] = Op(
    "embedding", Registry("embedding kernel", {"torch": "octavo.kernels.ops:TORCH_EMBEDDING"})
)
KV_STORE: Op[OpCase, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None]] = Op(
    "kv_store", Registry("kv_store kernel", {"torch": "octavo.kernels.ops:TORCH_KV_STORE"})
)

OPS = (RMS_NORM, ADD_RMS_NORM, ROPE, SILU_AND_MUL, EMBEDDING, KV_STORE, LINEAR, ATTENTION)
"""Every op, for `check_forced` and for reports."""
