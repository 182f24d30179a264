"""Products with packed weights by the compiled kernels. Shape letters: N rows, D inputs, O outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.cpu.extension import address, native


class PackedWeight:
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
        self._packed = native.PackedWeight(weight_OD, num_threads=num_threads)
        self.num_outputs, self.num_inputs = weight_OD.shape

    @property
    def num_bytes(self) -> int:
        """Size of the packed form; outputs are filled up to whole panels."""
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
        native.linear(self._packed, x, bias, out, rows, num_threads, isa)

    def rows(self, ids_N: Tensor, out_ND: Tensor) -> None:
        """Write the weights of outputs `ids_N` (int64) into `out_ND`, float32: an embedding.

        Raises:
            ValueError: shapes, dtypes or layout do not fit, or an id is none.
        """
        _gather(
            native.packed_rows, self._packed, (self.num_outputs, self.num_inputs), ids_N, out_ND
        )


class QuantWeight:
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
        self._packed = native.QuantWeight(
            weight_OD, bits=bits, group=group, has_zeros=has_zeros, num_threads=num_threads
        )
        self.num_outputs, self.num_inputs = weight_OD.shape

    @property
    def num_bytes(self) -> int:
        """Size of the packed form, scales included; outputs are filled up to whole panels."""
        return int(self._packed.num_bytes)

    def dequantize(self) -> Tensor:
        """float32 [O, D]."""
        out_OD = torch.empty(self.num_outputs, self.num_inputs)
        self._packed.dequantize(out_OD.data_ptr())
        return out_OD

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
        native.quant_linear(self._packed, x, bias, out, rows, num_threads, isa)

    def rows(self, ids_N: Tensor, out_ND: Tensor) -> None:
        """Write the dequantized weights of outputs `ids_N` (int64) into `out_ND`, float32: an embedding.

        Raises:
            ValueError: shapes, dtypes or layout do not fit, or an id is none.
        """
        _gather(native.quant_rows, self._packed, (self.num_outputs, self.num_inputs), ids_N, out_ND)


def _gather(
    run: Callable[[Any, int, int, int], None],
    packed: Any,
    shape: tuple[int, int],
    ids_N: Tensor,
    out_ND: Tensor,
) -> None:
    count = len(ids_N)
    ids = address("ids", ids_N, (count,), torch.int64)
    run(packed, ids, address("out", out_ND, (count, shape[1])), count)
