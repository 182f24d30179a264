"""Linear layers whose checkpoint has levels of 8 bits and scales. Shape letters: O outputs, D inputs, G groups of inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from octavo.kernels.gemm.formats import Quantized
from octavo.layers.quant.base import Declares
from octavo.layers.quant.claim import Claim
from octavo.layers.quant.spec import SCALE, StoredSpec

DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


class StoredLevels:
    """The format of one checkpoint, and as what its layers are kept."""

    def __init__(self, spec: StoredSpec, form: str) -> None:
        self.spec = spec
        self.form = form
        self._claim = Claim(spec)

    @staticmethod
    def reads(spec: StoredSpec, /) -> bool:
        """Reads levels of 8 bits."""
        return spec.packing is None

    def claims(self, names: tuple[str, ...], /) -> bool:
        """Whether these parts of a layer are quantized.

        Raises:
            ModelError: some are and some are not, though one product makes all of them.
        """
        return self._claim(names)

    def stored(
        self, build: Declares, parts: tuple[tuple[str, int], ...], num_inputs: int, /
    ) -> Callable[[], Quantized]:
        """Declare levels and scales; what is returned reads them once they are filled."""
        dtype, outputs = DTYPES[self.spec.kind], sum(size for _, size in parts)
        levels_OD = torch.empty(outputs, num_inputs, dtype=dtype, device=build.device)
        tall, wide = self.spec.block or (1, max(1, num_inputs))
        scales = []
        start = 0
        for name, size in parts:
            build.note(f"{name}.weight", levels_OD[start : start + size], "levels")
            shape = -(-size // tall), -(-num_inputs // wide)
            scales.append(torch.empty(shape, device=build.device))
            build.note(f"{name}.{SCALE}", scales[-1], "scales")
            start += size

        def read() -> Quantized:
            rows = [
                scales_BG.repeat_interleave(tall, 0)[:size]
                for scales_BG, (_, size) in zip(scales, parts, strict=True)
            ]
            scales_OG = torch.cat(rows)
            return Quantized(levels_OD, scales_OG, torch.zeros_like(scales_OG), wide)

        return read
