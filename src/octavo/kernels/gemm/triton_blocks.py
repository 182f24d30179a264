"""Linear with e4m3 weights that have a scale per block of outputs and inputs, on a GPU, in Triton.

Rows are rounded as they come, with a scale per group of as many inputs. Loads no triton until a weight is packed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import FORMATS, Quantized
from octavo.kernels.gemm.triton import TritonLinear, in_parts, level_rows
from octavo.kernels.gpu_facts import FP8_CAPABILITY
from octavo.kernels.triton import support

if TYPE_CHECKING:
    from octavo.kernels.triton.gemm_blocks import BlockWeight


class TritonBlocks(TritonLinear):
    """e4m3 by e4m3."""

    @staticmethod
    def refuses(case: OpCase, /) -> str | None:
        """Refuses other formats, devices and dtypes, devices without e4m3, and a process without triton."""
        if case.weights not in FORMATS:
            return "takes weights of a quantized format"
        form = FORMATS[case.weights]
        if form.rows != "fp8" or not form.group:
            return "takes fp8 weights with scales of blocks"
        return support.refusal(
            case.device, case.dtype, ("bfloat16", "float16"), capability=FP8_CAPABILITY
        )

    def pack(self, weight_OD: torch.Tensor, /) -> BlockWeight:
        """Levels and scales."""
        levels_OD = torch.empty(weight_OD.shape, dtype=torch.float8_e4m3fn, device=weight_OD.device)
        scales = []
        for part, found in in_parts(weight_OD, self._format):
            levels_OD[part] = found.levels_OD.to(levels_OD.dtype)
            scales.append(found.scales_OG)
        scales_OG = torch.cat(scales)
        return self.adopt(
            Quantized(levels_OD, scales_OG, torch.zeros_like(scales_OG), self._format.group)
        )

    def adopts(self, levels: Quantized, /) -> bool:
        """Whether they are e4m3 with a scale per group of this size, whatever outputs share it."""
        is_e4m3 = levels.levels_OD.dtype == torch.float8_e4m3fn
        return is_e4m3 and levels.group == self._format.group

    def adopt(self, levels: Quantized, /) -> BlockWeight:
        """Levels as they are; scales once per block, or once per output where merged matrices do not begin with a block."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton.gemm_blocks import BlockWeight

        tall, scales_OG = self._format.tall, levels.scales_OG
        scales_BG = scales_OG[::tall]
        if not torch.equal(scales_BG.repeat_interleave(tall, 0)[: len(scales_OG)], scales_OG):
            tall, scales_BG = 1, scales_OG
        return BlockWeight(levels.levels_OD, scales_BG.T.contiguous(), tall, levels.group)

    def rows(self, packed: BlockWeight, ids_T: torch.Tensor, /) -> torch.Tensor:
        """Rows int64 [T] of the weight, [T, D]."""
        levels_TD = level_rows(packed.levels_OD, ids_T)
        scales_TG = packed.scales_GB.index_select(1, ids_T // packed.tall).T
        scales_TD = scales_TG.repeat_interleave(packed.group, 1)[:, : levels_TD.shape[1]]
        return (levels_TD * scales_TD).to(self._dtype)

    def run(
        self, x_ND: torch.Tensor, packed: BlockWeight, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        # lazy: Triton is loaded where it runs
        from octavo.kernels.triton import gemm_blocks

        tile = self._tile("fp8_block", len(x_ND))
        return gemm_blocks.multiply_blocks(x_ND, packed, bias_O, tile)
