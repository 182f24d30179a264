"""Linear with weights that were quantized at load, and activations that are rounded to int8 as they come.

Activations have one scale per row and group of inputs: the group of an int4 weight, and 128 inputs beside int8 weights,
so that one outlier costs its own group its precision and no other. The usual one scale per row is a special case that is
never better.
"""

from __future__ import annotations

import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import QuantWeight
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import FORMATS, Quantized, quantize, quantize_rows

INT8_ACTIVATION_GROUP = 128
"""kActivationGroup of csrc/cpu/qgemm.h."""


def _stores(checkpoint: str) -> str:
    """What a weight is read as before it is quantized: bfloat16 stays, all else is widened."""
    return "bfloat16" if checkpoint == "bfloat16" else "float32"


class CpuQuantized:
    """The compiled kernels for one case. A row's result is the same bits alone and in any batch."""

    repacks = True

    def __init__(self, case: OpCase) -> None:
        self.case = case
        self._format = FORMATS[case.weights]

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses unquantized weights, other devices and dtypes, and a build without the extension."""
        if case.weights not in FORMATS:
            return "takes weights quantized at load"
        return extension.refusal(case.device, case.dtype, ("float32",))

    def stores(self, checkpoint: str, /) -> str:
        """As `_stores` says."""
        return _stores(checkpoint)

    def pack(self, weight_OD: torch.Tensor, /) -> QuantWeight:
        """The weight as panels of levels."""
        return QuantWeight(
            weight_OD.detach(),
            bits=self._format.bits,
            group=self._format.group,
            has_zeros=self._format.has_zeros,
            num_threads=extension.num_threads(),
        )

    def rows(self, packed: QuantWeight, ids_T: torch.Tensor, /) -> torch.Tensor:
        """int64 [T] -> float32 [T, D]."""
        out_TD = torch.empty(len(ids_T), packed.num_inputs)
        packed.rows(ids_T, out_TD)
        return out_TD

    def run(
        self, x_ND: torch.Tensor, packed: QuantWeight, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        x_ND = x_ND.contiguous()
        out_NO = torch.empty(x_ND.shape[0], self.case.sizes[0])
        packed.multiply(x_ND, out_NO, bias_O, num_threads=extension.num_threads())
        return out_NO


class TorchQuantized:
    """The reference: the same levels, multiplied in float64. Far too slow to serve, so it is in no registry."""

    repacks = True

    def __init__(self, case: OpCase) -> None:
        self.case = case
        self._format = FORMATS[case.weights]

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses unquantized weights."""
        return None if case.weights in FORMATS else "takes weights quantized at load"

    def stores(self, checkpoint: str, /) -> str:
        """As `_stores` says."""
        return _stores(checkpoint)

    def pack(self, weight_OD: torch.Tensor, /) -> Quantized:
        """Levels, scales and zero points."""
        return quantize(weight_OD, self._format)

    def rows(self, packed: Quantized, ids_T: torch.Tensor, /) -> torch.Tensor:
        """int64 [T] -> [T, D]."""
        chosen = Quantized(
            packed.levels_OD[ids_T], packed.scales_OG[ids_T], packed.zeros_OG[ids_T], packed.group
        )
        return chosen.dequantize().to(getattr(torch, self.case.dtype))

    def run(
        self, x_ND: torch.Tensor, packed: Quantized, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O] in x's dtype."""
        rounded_ND = quantize_rows(x_ND, self._format.group or INT8_ACTIVATION_GROUP)
        out_NO = rounded_ND @ packed.dequantize().double().T
        if bias_O is not None:
            out_NO = out_NO + bias_O.double()
        return out_NO.to(x_ND.dtype)
