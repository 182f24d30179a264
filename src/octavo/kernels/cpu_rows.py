"""Norms, rotation and activation by the compiled CPU kernels: one pass over each row, the same bits in any batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from octavo.kernels.cpu import extension, rows
from octavo.kernels.curves import Curve
from octavo.kernels.dispatch import OpCase
from octavo.kernels.kv import KVTensors
from octavo.kernels.ops import QkNorm

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class CpuFunction(Generic[P, R]):
    """A candidate that is one function on float32 CPU tensors."""

    run: Callable[P, R]

    def refuses(self, case: OpCase, /) -> str | None:
        """Refuses other devices and dtypes, and a build without the extension."""
        return extension.refusal(case.device, case.dtype, ("float32",))

    def __call__(self, case: OpCase, /) -> Callable[P, R]:
        """The function itself."""
        return self.run


def rms_norm(x_ND: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """As `ops.rms_norm`."""
    x_ND = x_ND.contiguous()
    out_ND = torch.empty_like(x_ND)
    rows.rms_norm(x_ND, weight_D, out_ND, eps, num_threads=extension.num_threads())
    return out_ND


def add_rms_norm(
    x_ND: Tensor, residual_ND: Tensor, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """As `ops.add_rms_norm`; the sum is written over the residual."""
    out_ND = torch.empty_like(x_ND)
    threads = extension.num_threads()
    rows.rms_norm(x_ND, weight_D, out_ND, eps, residual_ND=residual_ND, num_threads=threads)
    return out_ND, residual_ND


def silu_and_mul(x_ND: Tensor) -> Tensor:
    """As `ops.silu_and_mul`."""
    out_ND = x_ND.new_empty(x_ND.shape[0], x_ND.shape[1] // 2)
    rows.silu_and_mul(x_ND, out_ND, num_threads=extension.num_threads())
    return out_ND


def layer_norm(x_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float) -> Tensor:
    """As `ops.layer_norm`."""
    x_ND = x_ND.contiguous()
    out_ND = torch.empty_like(x_ND)
    rows.layer_norm(x_ND, weight_D, bias_D, out_ND, eps, num_threads=extension.num_threads())
    return out_ND


def add_layer_norm(
    x_ND: Tensor, residual_ND: Tensor, weight_D: Tensor, bias_D: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """As `ops.add_layer_norm`; the sum is written over the residual."""
    out_ND = torch.empty_like(x_ND)
    threads = extension.num_threads()
    rows.layer_norm(
        x_ND, weight_D, bias_D, out_ND, eps, residual_ND=residual_ND, num_threads=threads
    )
    return out_ND, residual_ND


def activate(x_ND: Tensor, curve: Curve) -> Tensor:
    """As `ops.activate`, in place."""
    rows.activate(x_ND, x_ND, curve, num_threads=extension.num_threads())
    return x_ND


def activate_and_mul(x_ND: Tensor, curve: Curve) -> Tensor:
    """As `ops.activate_and_mul`."""
    out_ND = x_ND.new_empty(x_ND.shape[0], x_ND.shape[1] // 2)
    rows.activate(x_ND, out_ND, curve, is_gated=True, num_threads=extension.num_threads())
    return out_ND


def attention_inputs(
    qkv_TO: Tensor,
    norms: QkNorm | None,
    angles: tuple[Tensor, Tensor],
    slots_T: Tensor,
    cache: KVTensors,
) -> Tensor:
    """As `ops.attention_inputs`."""
    kv_heads, dim = cache.k.shape[2:]
    q_THD = qkv_TO.new_empty(qkv_TO.shape[0], qkv_TO.shape[1] // dim - 2 * kv_heads, dim)
    threads = extension.num_threads()
    rows.attention_inputs(qkv_TO, norms, angles, slots_T, cache, q_THD, num_threads=threads)
    return q_THD


RMS_NORM = CpuFunction(rms_norm)
ADD_RMS_NORM = CpuFunction(add_rms_norm)
SILU_AND_MUL = CpuFunction(silu_and_mul)
ATTENTION_INPUTS = CpuFunction(attention_inputs)
LAYER_NORM = CpuFunction(layer_norm)
ADD_LAYER_NORM = CpuFunction(add_layer_norm)
ACTIVATE = CpuFunction(activate)
ACTIVATE_AND_MUL = CpuFunction(activate_and_mul)
