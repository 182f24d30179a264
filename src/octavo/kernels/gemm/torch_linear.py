"""Linear through torch: MKL or oneDNN on CPU, cuBLAS on GPU. The weight stays as it is."""

from __future__ import annotations

import torch

from octavo.kernels import ops
from octavo.kernels.dispatch import OpCase


class TorchLinear:
    """The reference, wrapped. Takes every case of unquantized weights that may depend on the batch."""

    repacks = False

    def __init__(self, case: OpCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses quantized weights, and rows that must not depend on their batch."""
        if case.is_invariant:
            return "the library orders sums by the number of rows"
        return "keeps weights as they are" if case.weights else None

    def stores(self, checkpoint: str, /) -> str:
        """The activations' dtype; torch multiplies like with like."""
        return self.case.dtype

    def pack(self, weight_OD: torch.Tensor, /) -> torch.Tensor:
        """The weight itself."""
        return weight_OD

    def rows(self, packed: torch.Tensor, ids_T: torch.Tensor, /) -> torch.Tensor:
        """[V, D], int64 [T] -> [T, D]."""
        return ops.embedding(ids_T, packed)

    def run(
        self, x_ND: torch.Tensor, packed: torch.Tensor, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D], [O, D], [O] -> [N, O]."""
        return ops.linear(x_ND, packed, bias_O)
