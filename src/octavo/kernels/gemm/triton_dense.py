"""Linear with plain weights on a GPU where a row must have the same bits in any batch. Else the library is faster."""

from __future__ import annotations

import torch

from octavo.kernels import ops
from octavo.kernels.dispatch import OpCase
from octavo.kernels.triton import support


class TritonDense:
    """One tile and one order of sums for any number of rows. The weight stays as it is."""

    repacks = False

    def __init__(self, case: OpCase) -> None:
        self.case = case

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses quantized weights, cases that may depend on their batch, other devices and a process without triton."""
        if case.weights:
            return "keeps weights as they are"
        if not case.is_invariant:
            return "is for rows that must not depend on their batch; a library is faster"
        return support.refusal(case.device, case.dtype)

    def stores(self, checkpoint: str, /) -> str:
        """The activations' dtype."""
        return self.case.dtype

    def pack(self, weight_OD: torch.Tensor, /) -> torch.Tensor:
        """The weight itself."""
        return weight_OD.contiguous()

    def rows(self, packed: torch.Tensor, ids_T: torch.Tensor, /) -> torch.Tensor:
        """[V, D], int64 [T] -> [T, D]."""
        return ops.embedding(ids_T, packed)

    def run(
        self, x_ND: torch.Tensor, packed: torch.Tensor, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton.dense import multiply

        return multiply(x_ND, packed, bias_O)
