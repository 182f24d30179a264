"""Linear by the compiled CPU kernel: the weight is repacked once and kept in bfloat16 where the checkpoint is.

Inputs, sums and outputs are float32, so a bfloat16 checkpoint is read at half the bytes and without any rounding of
activations. A row's result is the same bits alone and in any batch.
"""

from __future__ import annotations

import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import PackedWeight, Weight
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.storage import packed_dtype, packed_refusal


class CpuLinear:
    """The compiled kernel for one case."""

    repacks = True

    def __init__(self, case: OpCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """As `packed_refusal` says."""
        return packed_refusal(case)

    @staticmethod
    def stores(checkpoint: str, /) -> str:
        """As `packed_dtype` says."""
        return packed_dtype(checkpoint)

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
