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

    from octavo.kernels.curves import Curve
    from octavo.kernels.kv import KVTensors
    from octavo.kernels.ops import QkNorm
    from octavo.kernels.rounded import Rounded

    Pair: TypeAlias = tuple[Tensor, Tensor]

RMS_NORM: Op[OpCase, Callable[[Tensor, Tensor, float], Tensor]] = Op(
    "rms_norm",
    Registry(
        "rms_norm kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:RMS_NORM",
            "triton": "octavo.kernels.triton_rows:RMS_NORM",
            "torch": "octavo.kernels.ops:TORCH_RMS_NORM",
        },
    ),
)
ADD_RMS_NORM: Op[OpCase, Callable[[Tensor, Tensor, Tensor, float], Pair]] = Op(
    "add_rms_norm",
    Registry(
        "add_rms_norm kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:ADD_RMS_NORM",
            "triton": "octavo.kernels.triton_rows:ADD_RMS_NORM",
            "torch": "octavo.kernels.ops:TORCH_ADD_RMS_NORM",
        },
    ),
)
ADD_RMS_NORM_ROUNDED: Op[
    OpCase, Callable[[Tensor, Tensor | None, Tensor, float, str], tuple[Rounded, Tensor]]
] = Op(
    "add_rms_norm_rounded",
    Registry(
        "add_rms_norm_rounded kernel",
        {
            "triton": "octavo.kernels.triton_rows:ADD_RMS_NORM_ROUNDED",
            "torch": "octavo.kernels.ops:TORCH_ADD_RMS_NORM_ROUNDED",
        },
    ),
)
ATTENTION_INPUTS: Op[OpCase, Callable[[Tensor, QkNorm | None, Pair, Tensor, KVTensors], Tensor]] = (
    Op(
        "attention_inputs",
        Registry(
            "attention_inputs kernel",
            {
                "cpu": "octavo.kernels.cpu_rows:ATTENTION_INPUTS",
                "triton": "octavo.kernels.triton_rows:ATTENTION_INPUTS",
                "torch": "octavo.kernels.ops:TORCH_ATTENTION_INPUTS",
            },
        ),
    )
)
SILU_AND_MUL: Op[OpCase, Callable[[Tensor], Tensor]] = Op(
    "silu_and_mul",
    Registry(
        "silu_and_mul kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:SILU_AND_MUL",
            "triton": "octavo.kernels.triton_rows:SILU_AND_MUL",
            "torch": "octavo.kernels.ops:TORCH_SILU_AND_MUL",
        },
    ),
)
LAYER_NORM: Op[OpCase, Callable[[Tensor, Tensor, Tensor | None, float], Tensor]] = Op(
    "layer_norm",
    Registry(
        "layer_norm kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:LAYER_NORM",
            "triton": "octavo.kernels.triton_rows:LAYER_NORM",
            "torch": "octavo.kernels.ops:TORCH_LAYER_NORM",
        },
    ),
)
ADD_LAYER_NORM: Op[OpCase, Callable[[Tensor, Tensor, Tensor, Tensor | None, float], Pair]] = Op(
    "add_layer_norm",
    Registry(
        "add_layer_norm kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:ADD_LAYER_NORM",
            "triton": "octavo.kernels.triton_rows:ADD_LAYER_NORM",
            "torch": "octavo.kernels.ops:TORCH_ADD_LAYER_NORM",
        },
    ),
)
ACTIVATE: Op[OpCase, Callable[[Tensor, Curve], Tensor]] = Op(
    "activate",
    Registry(
        "activate kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:ACTIVATE",
            "triton": "octavo.kernels.triton_rows:ACTIVATE",
            "torch": "octavo.kernels.ops:TORCH_ACTIVATE",
        },
    ),
)
ACTIVATE_AND_MUL: Op[OpCase, Callable[[Tensor, Curve], Tensor]] = Op(
    "activate_and_mul",
    Registry(
        "activate_and_mul kernel",
        {
            "cpu": "octavo.kernels.cpu_rows:ACTIVATE_AND_MUL",
            "triton": "octavo.kernels.triton_rows:ACTIVATE_AND_MUL",
            "torch": "octavo.kernels.ops:TORCH_ACTIVATE_AND_MUL",
        },
    ),
)
EMBEDDING: Op[OpCase, Callable[[Tensor, Tensor], Tensor]] = Op(
    "embedding",
    Registry(
        "embedding kernel",
        {
            "triton": "octavo.kernels.triton_rows:EMBEDDING",
            "torch": "octavo.kernels.ops:TORCH_EMBEDDING",
        },
    ),
)

OPS = (
    RMS_NORM,
    ADD_RMS_NORM,
    ADD_RMS_NORM_ROUNDED,
    LAYER_NORM,
    ADD_LAYER_NORM,
    ATTENTION_INPUTS,
    SILU_AND_MUL,
    ACTIVATE,
    ACTIVATE_AND_MUL,
    EMBEDDING,
    LINEAR,
    ATTENTION,
)
"""Every op, for `check_forced` and for reports."""
