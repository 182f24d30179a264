"""Linear layers, single or merged. Shape letters: N rows, D in, O out (all parts together)."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.gemm.base import AdoptingKernel, RoundingKernel
from octavo.kernels.gemm.formats import plain
from octavo.kernels.gemm.registry import LINEAR
from octavo.kernels.rounded import Rounded
from octavo.layers.build import Build
from octavo.layers.quant.base import QuantFormat


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
        quant = build.quant if build.quant and build.quant.claims(names) else None
        form = build.quantization if quant is None else quant.form
        self._packed: Any = None
        self._order_D: torch.Tensor | None = None
        case = build.case(self.num_outputs, num_inputs, weights=form)
        self._kernel = build.dispatch.choose(LINEAR, case)
        if quant is None:
            self._declare_weight(build)
        else:
            self._declare_levels(build, quant)

    @property
    def rounds_rows(self) -> str:
        """To what rows are rounded before the product; whoever makes them may do that. "": not, or not in that way."""
        return self._kernel.rounds_rows if isinstance(self._kernel, RoundingKernel) else ""

    def __call__(self, x_ND: torch.Tensor | Rounded) -> torch.Tensor:
        """[N, D] -> [N, O]."""
        if isinstance(x_ND, Rounded):
            assert isinstance(self._kernel, RoundingKernel), "asked for rounded rows"
            return self._kernel.run_rounded(x_ND, self._packed, self._bias_O)
        if self._order_D is not None:
            x_ND = x_ND.index_select(1, self._order_D)
        return self._kernel.run(x_ND, self._packed, self._bias_O)

    def _declare_levels(self, build: Build, quant: QuantFormat) -> None:
        read = quant.stored(build, self.parts, self.num_inputs)

        def finish() -> None:
            # A kernel takes the levels of its own format; others get the numbers that they stand for.
            levels = read()
            if isinstance(self._kernel, AdoptingKernel) and self._kernel.adopts(levels):
                self._packed, self._order_D = self._kernel.adopt(levels), levels.order_D
            else:
                self._packed = self._kernel.pack(plain(levels, build.weight_dtype))

        build.finishers.append(finish)

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
