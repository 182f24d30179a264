"""RMS and layer norm, alone or fused with the residual sum before it. Shape letters: N rows, D features."""

from __future__ import annotations

import torch

from octavo.kernels.registry import (
    ADD_LAYER_NORM,
    ADD_RMS_NORM,
    ADD_RMS_NORM_ROUNDED,
    LAYER_NORM,
    RMS_NORM,
)
from octavo.kernels.rounded import Rounded
from octavo.layers.build import Build


class RmsNorm:
    """Scales rows to unit mean square, then by a learned weight."""

    def __init__(self, build: Build, size: int, eps: float) -> None:
        self.weight_D = build.parameter("weight", size, init="ones")
        self.eps = eps
        self._norm = build.dispatch.choose(RMS_NORM, build.case(size))
        self._add_norm = build.dispatch.choose(ADD_RMS_NORM, build.case(size))
        self._kind = ""

    def feed(self, build: Build, kind: str) -> None:
        """Let `add_for` round rows to `kind` (`Linear.rounds_rows`) in the same pass."""
        self._kind = kind
        if kind:
            case = build.case(len(self.weight_D))
            self._add_norm_rounded = build.dispatch.choose(ADD_RMS_NORM_ROUNDED, case)

    def add_for(
        self, x_ND: torch.Tensor, residual_ND: torch.Tensor | None
    ) -> tuple[torch.Tensor | Rounded, torch.Tensor]:
        """As `add`, for the product that it was told to feed."""
        if not self._kind:
            return self.add(x_ND, residual_ND)
        return self._add_norm_rounded(x_ND, residual_ND, self.weight_D, self.eps, self._kind)

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., D]."""
        return self._norm(x_ND, self.weight_D, self.eps)

    def add(
        self, x_ND: torch.Tensor, residual_ND: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(norm(x + residual), x + residual)`, both [N, D]; no residual counts as zero. Consumes its inputs."""
        if residual_ND is None:
            return self(x_ND), x_ND
        return self._add_norm(x_ND, residual_ND, self.weight_D, self.eps)


class LayerNorm:
    """Shifts rows to mean 0 and scales them to variance 1, then by a learned weight and bias."""

    def __init__(self, build: Build, size: int, eps: float, *, has_bias: bool = True) -> None:
        self.weight_D = build.parameter("weight", size, init="ones")
        self.bias_D = build.parameter("bias", size, init="zeros") if has_bias else None
        self.eps = eps
        self._norm = build.dispatch.choose(LAYER_NORM, build.case(size))
        self._add_norm = build.dispatch.choose(ADD_LAYER_NORM, build.case(size))

    def __call__(self, x_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> [N, D]."""
        return self._norm(x_ND, self.weight_D, self.bias_D, self.eps)

    def add(
        self, x_ND: torch.Tensor, residual_ND: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`(norm(x + residual), x + residual)`, both [N, D]. Consumes its inputs."""
        return self._add_norm(x_ND, residual_ND, self.weight_D, self.bias_D, self.eps)
