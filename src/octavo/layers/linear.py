"""Linear layers, single or merged. Shape letters: N rows, D in, O out (all parts together)."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.gemm.registry import LINEAR
from octavo.layers.build import Build


class Linear:
    """y = x W^T + b, where W may be several checkpoint tensors stacked along O.

    `parts` are (checkpoint name, output size) in the order of the output's columns; merging them (query, key and
    value; gate and up) makes one product of two or three.
    """

    def __init__(
        self,
        build: Build,
        parts: tuple[tuple[str, int], ...],
        num_inputs: int,
        *,
        has_bias: bool = False,
    ) -> None:
        self.parts = parts
        self.num_inputs = num_inputs
        self.num_outputs = sum(size for _, size in parts)
        self._bias_O = self._declare_bias(build) if has_bias else None
        names = tuple(build.name(name) for name, _ in parts)
        self._quant = build.quant if build.quant and build.quant.claims(names) else None
        self._packed: Any = None
        if self._quant is not None:
            self._packed = self._quant.stored(build, parts, num_inputs)
            return
        case = build.case(self.num_outputs, num_inputs, weights=build.quantization)
        self._kernel = build.dispatch.choose(LINEAR, case)
        self._declare_weight(build)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        if self._quant is not None:
            return self._quant.apply(x_ND, self._packed, self._bias_O)
        return self._kernel.run(x_ND, self._packed, self._bias_O)

    def _declare_weight(self, build: Build) -> None:
        weight_OD = build.empty(self.num_outputs, self.num_inputs, dtype=build.weight_dtype)
        start = 0
        for name, size in self.parts:
            build.note(f"{name}.weight", weight_OD[start : start + size], "normal")
            start += size

        def finish() -> None:
            names = tuple(build.name(f"{name}.weight") for name, _ in self.parts)
            self._packed = build.pack(self._kernel, weight_OD, names, build.quantization)

        build.finishers.append(finish)

    def _declare_bias(self, build: Build) -> torch.Tensor:
        bias_O = build.empty(self.num_outputs)
        start = 0
        for name, size in self.parts:
            build.note(f"{name}.bias", bias_O[start : start + size], "zeros")
            start += size
        return bias_O
