"""Linear with weights that were quantized at load, and activations that are rounded to int8 as they come.

Activations have one scale per row and 128 inputs, so that one outlier costs its own group its precision and no other. The
usual one scale per row is a special case that is never better.
"""

from __future__ import annotations

import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import QuantWeight, Weight, taken_levels
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.cpu import CpuLinear
from octavo.kernels.gemm.formats import (
    FORMATS,
    Quantized,
    adopts_int4,
    narrowed,
    quantize,
    quantize_groups,
    quantize_rows,
    quantize_whole_rows,
)

ACTIVATION_GROUP = 128
"""kActivationGroup of csrc/cpu/qgemm.h."""


class CpuQuantized(CpuLinear):
    """The compiled kernels for one case. A row's result is the same bits alone and in any batch."""

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses unquantized weights, other devices and dtypes, and a build without the extension."""
        if case.weights not in FORMATS:
            return "takes weights quantized at load"
        if FORMATS[case.weights].rows:
            return "rounds activations to int8, in groups of its own"
        return extension.refusal(case.device, case.dtype, ("float32",))

    def pack(self, weight_OD: torch.Tensor, /) -> QuantWeight:
        """The weight as panels of levels."""
        form = FORMATS[self.case.weights]
        return QuantWeight(
            weight_OD.detach(),
            bits=form.bits,
            group=form.group,
            has_zeros=form.has_zeros,
            num_threads=extension.num_threads(),
        )

    def adopts(self, levels: Quantized, /) -> bool:
        """Whether they are int4 levels of this format."""
        return adopts_int4(levels, FORMATS[self.case.weights])

    def adopt(self, levels: Quantized, /) -> Weight:
        """The levels as panels; scales in 16 bits where those hold them."""
        has_zeros = FORMATS[self.case.weights].has_zeros
        return taken_levels(
            levels.levels_OD.contiguous(),
            narrowed(levels.scales_OG),
            levels.zeros_OG.to(torch.uint8).contiguous() if has_zeros else None,
            levels.group,
            num_threads=extension.num_threads(),
        )


class TorchQuantized:
    """The reference: the same levels, multiplied in float64. Far too slow to serve, so it is in no registry.

    `rounds_rows`: whether activations are rounded, too; formats that say how always do.
    """

    def __init__(self, case: OpCase, *, rounds_rows: bool = True) -> None:
        self.case = case
        self._format = FORMATS[case.weights]
        self._rounds_rows = rounds_rows

    def pack(self, weight_OD: torch.Tensor, /) -> Quantized:
        """Levels, scales and zero points."""
        return quantize(weight_OD, self._format)

    def run(
        self, x_ND: torch.Tensor, packed: Quantized, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O] in x's dtype."""
        rounded_ND = self._rounded(x_ND)
        out_NO = rounded_ND @ packed.dequantize().double().T
        if bias_O is not None:
            out_NO = out_NO + bias_O.double()
        return out_NO.to(x_ND.dtype)

    def _rounded(self, x_ND: torch.Tensor) -> torch.Tensor:
        """float64 [N, D]."""
        if self._format.rows and self._format.group:
            group = self._format.group
            levels_ND, scales_NG = quantize_groups(x_ND, self._format.rows, group)
            scales_ND = scales_NG.repeat_interleave(group, 1)[:, : x_ND.shape[1]]
            return levels_ND.double() * scales_ND.double()
        if self._format.rows:
            levels_ND, scales_N = quantize_whole_rows(x_ND, self._format.rows)
            return levels_ND.double() * scales_N.double()[:, None]
        if self._rounds_rows:
            return quantize_rows(x_ND, ACTIVATION_GROUP)
        return x_ND.double()
