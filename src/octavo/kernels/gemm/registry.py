"""Linear kernels as literal rows, preferred first. Sizes of the case: (out, in)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.core.registry import Registry
from octavo.kernels.dispatch import Op, OpCase

if TYPE_CHECKING:
    from octavo.kernels.gemm.base import LinearKernel

LINEAR: Op[OpCase, LinearKernel] = Op(
    "linear",
    Registry(
        "linear kernel",
        {
            "cpu_quantized": "octavo.kernels.gemm.quantized:CpuQuantized",
            "triton_weight_only": "octavo.kernels.gemm.triton:TritonWeightOnly",
            "triton_8bit": "octavo.kernels.gemm.triton:Triton8Bit",
            "triton_blocks": "octavo.kernels.gemm.triton_blocks:TritonBlocks",
            "cpu_packed": "octavo.kernels.gemm.cpu:CpuLinear",
            "triton_dense": "octavo.kernels.gemm.triton_dense:TritonDense",
            "torch": "octavo.kernels.gemm.torch_linear:TorchLinear",
        },
    ),
)
