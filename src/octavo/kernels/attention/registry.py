"""Attention backends as literal rows, preferred first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.core.registry import Registry
from octavo.kernels.dispatch import Op

if TYPE_CHECKING:
    from octavo.kernels.attention.base import AttentionBackend, AttentionCase

ATTENTION: Op[AttentionCase, AttentionBackend[Any]] = Op(
    "attention",
    Registry(
        "attention backend",
        {
            "cpu_paged": "octavo.kernels.attention.cpu:CpuAttention",
            "flash_attn": "octavo.kernels.attention.flash_attn:FlashAttention",
            "flashinfer": "octavo.kernels.attention.flashinfer:FlashInferAttention",
            "triton": "octavo.kernels.attention.triton:TritonAttention",
            "torch_sdpa": "octavo.kernels.attention.torch_sdpa:TorchSdpa",
            "reference": "octavo.kernels.attention.reference:ReferenceAttention",
        },
    ),
    rivals=("flash_attn", "flashinfer", "triton"),
    race="octavo.kernels.attention.race:race",
)
