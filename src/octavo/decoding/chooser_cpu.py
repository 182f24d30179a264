"""Tokens by the compiled CPU kernel: one pass over a row of logits where it is greedy, two or three where it is not."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from octavo.decoding.chooser import Chooser
from octavo.decoding.state import SamplingBatch
from octavo.kernels.cpu import extension
from octavo.kernels.dispatch import OpCase


class CpuChooser:
    """The compiled kernel."""

    def __init__(self, isa: str = "") -> None:
        """`isa` forces an instruction set; the empty string takes the best."""
        # lazy: where the extension was not built, this module is asked only for its refusal
        from octavo.kernels.cpu.sample import sample

        self._sample = sample
        self._isa = isa

    def choose(self, logits_NV: torch.Tensor, batch: SamplingBatch, /) -> npt.NDArray[np.int64]:
        """As `Chooser.choose`."""
        return self._sample(
            logits_NV.contiguous(),
            batch.params_R,
            batch.rows_N,
            batch.positions_N,
            masks=batch.masks.choices if batch.masks else None,
            num_threads=extension.num_threads(),
            isa=self._isa,
        )


class _Cpu:
    """Takes float32 on the CPU."""

    def refuses(self, case: OpCase, /) -> str | None:
        """Refuses other devices and dtypes, and a build without the extension."""
        return extension.refusal(case.device, case.dtype, ("float32",))

    def __call__(self, case: OpCase, /) -> Chooser:
        """A chooser; the case says no more than that it is wanted here."""
        return CpuChooser()


CPU = _Cpu()
