"""Products with packed weights by the compiled kernels. Shape letters: N rows, D inputs, O outputs."""

from __future__ import annotations

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
