"""Products with packed weights by the compiled kernels. Shape letters: N rows, D inputs, O outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.cpu.extension import address, native


class Weight:
    """A packed weight [O, D] and the functions of the extension that take it."""

    def __init__(
        self,
        packed: Any,
        shape: torch.Size,
        linear: Callable[..., None],
        gather: Callable[..., None],
    ) -> None:
        self._packed = packed
        self.num_outputs, self.num_inputs = shape
        self._linear = linear
        self._gather = gather

    @property
    def num_bytes(self) -> int:
        """Size of the packed form, scales included; outputs are filled up to whole panels."""
        return int(self._packed.num_bytes)

    def multiply(
        self,
        x_ND: Tensor,
        out_NO: Tensor,
        bias_O: Tensor | None = None,
        *,
        num_threads: int = 1,
        isa: str = "",
    ) -> None:
        """Write x @ weight^T + bias into `out_NO`; all float32 and C-contiguous.

        Raises:
            ValueError: shapes, dtypes or layout do not fit.
        """
        rows = x_ND.shape[0]
        x = address("x", x_ND, (rows, self.num_inputs))
        out = address("out", out_NO, (rows, self.num_outputs))
        bias = 0 if bias_O is None else address("bias", bias_O, (self.num_outputs,))
        self._linear(self._packed, x, bias, out, rows, num_threads, isa)

    def rows(self, ids_N: Tensor, out_ND: Tensor) -> None:
        """Write the weights of outputs `ids_N` (int64) into `out_ND`, float32: an embedding.

        Raises:
            ValueError: shapes, dtypes or layout do not fit, or an id is none.
        """
        count = len(ids_N)
        ids = address("ids", ids_N, (count,), torch.int64)
        self._gather(self._packed, ids, address("out", out_ND, (count, self.num_inputs)), count)


class PackedWeight(Weight):
    """A weight in the kernels' own layout: panels of sixteen outputs, one input after the other.

    Kept as bfloat16 where that loses nothing (a bfloat16 weight, or a float32 one whose values all are bfloat16), else
    as float32. Products are float32: each output is one chain of fused multiply-adds over the inputs in order, so that a
    row's result depends neither on the other rows nor on the number of threads or the instruction set.
    """

    def __init__(self, weight_OD: Tensor, *, num_threads: int = 1) -> None:
        """Copy and repack (`weight_OD` float32 or bfloat16 [O, D], C-contiguous).

        Raises:
            ValueError: another dtype.
            TypeError: not on the CPU, or not contiguous.
        """
        packed = native.PackedWeight(weight_OD, num_threads=num_threads)
        super().__init__(packed, weight_OD.shape, native.linear, native.packed_rows)


class QuantWeight(Weight):
    """A weight quantized to int8 or int4 in the kernels' own layout: panels of sixteen outputs, quads of inputs.

    Inputs are quantized per row and group of inputs to int8 as they come, so that sums within a group are exact
    integers; across groups an output is one chain of fused multiply-adds in float32. A row's result depends neither on
    the other rows nor on the number of threads or the instruction set.
    """

    def __init__(
        self,
        weight_OD: Tensor,
        *,
        bits: int,
        group: int = 0,
        has_zeros: bool = False,
        num_threads: int = 1,
    ) -> None:
        """Quantize and repack (`weight_OD` float32 or bfloat16 [O, D], C-contiguous).

        `bits` 8: one scale per output, and `group` is 0. `bits` 4: one scale per `group` (32, 64 or 128) inputs, and
        zero points if asked for.

        Raises:
            ValueError: another dtype, number of bits or group.
            TypeError: not on the CPU, or not contiguous.
        """
        packed = native.QuantWeight(
            weight_OD, bits=bits, group=group, has_zeros=has_zeros, num_threads=num_threads
        )
        super().__init__(packed, weight_OD.shape, native.quant_linear, native.quant_rows)


def taken_levels(
    levels_OD: Tensor,
    scales_OG: Tensor,
    zeros_OG: Tensor | None,
    group: int,
    *,
    num_threads: int = 1,
) -> Weight:
    """A weight of int4 levels 0 .. 15 (uint8) as they are; value = (level - zero) * scale, and no zeros are 8 everywhere.

    Scales are float32, bfloat16 or float16, and kept so; zeros uint8 0 .. 15. All on the CPU and C-contiguous.

    Raises:
        ValueError: shapes or dtypes do not fit, or a group that is not 32, 64 or 128.
        TypeError: not on the CPU, or not contiguous.
    """
    packed = native.QuantWeight.take(levels_OD, scales_OG, zeros_OG, group, num_threads)
    return packed_already(packed, levels_OD.shape)


def packed_already(packed: Any, shape: torch.Size) -> Weight:
    """A weight [O, D] that the extension packed without torch (`native.PackingAhead`)."""
    if isinstance(packed, native.QuantWeight):
        return Weight(packed, shape, native.quant_linear, native.quant_rows)
    return Weight(packed, shape, native.linear, native.packed_rows)
