"""Linear by the compiled CPU kernel: the weight is repacked once and kept in bfloat16 where the checkpoint is.

Inputs, sums and outputs are float32, so a bfloat16 checkpoint is read at half the bytes and without any rounding of
activations. A row's result is the same bits alone and in any batch.
"""

from __future__ import annotations

import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import PackedWeight, Weight
from octavo.kernels.dispatch import OpCase


class CpuLinear:
    """The compiled kernel for one case."""

    repacks = True

    def __init__(self, case: OpCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses other devices and dtypes, machines without vector units, and a build without the extension."""
        if case.weights:
            return "keeps weights as they are"
        reason = extension.refusal(case.device, case.dtype, ("float32",))
        if reason is None and extension.isa() == "scalar":
            return "this CPU has no AVX2, and without it torch is faster"
        return reason

    @staticmethod
    def stores(checkpoint: str, /) -> str:
        """bfloat16 stays; everything else is kept in float32."""
        return "bfloat16" if checkpoint == "bfloat16" else "float32"

    def pack(self, weight_OD: torch.Tensor, /) -> Weight:
        """The weight as panels."""
        return PackedWeight(weight_OD.detach(), num_threads=extension.num_threads())

    def rows(self, packed: Weight, ids_T: torch.Tensor, /) -> torch.Tensor:
        """int64 [T] -> float32 [T, D]."""
        out_TD = torch.empty(len(ids_T), packed.num_inputs)
        packed.rows(ids_T, out_TD)
        return out_TD

    def run(
        self, x_ND: torch.Tensor, packed: Weight, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D], [O, D], [O] -> [N, O]."""
        x_ND = x_ND.contiguous()
        out_NO = torch.empty(x_ND.shape[0], self.case.sizes[0])
        packed.multiply(x_ND, out_NO, bias_O, num_threads=extension.num_threads())
        return out_NO
