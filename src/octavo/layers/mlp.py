"""The gated feed-forward block. Shape letters: N rows, D hidden, I intermediate."""

from __future__ import annotations

import torch

from octavo.kernels.registry import SILU_AND_MUL
from octavo.kernels.rounded import Rounded
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.parts import DOWN, GATE_UP


class GatedMlp:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(
        self, build: Build, hidden_size: int, intermediate_size: int, *, has_bias: bool
    ) -> None:
        parts = tuple((name, intermediate_size) for name in GATE_UP)
        self.gate_up = Linear(build, parts, hidden_size, has_bias=has_bias)
        self.down = Linear(build, ((DOWN, hidden_size),), intermediate_size, has_bias=has_bias)
        self._act = build.dispatch.choose(SILU_AND_MUL, build.case(intermediate_size))

    def __call__(self, x_ND: torch.Tensor | Rounded) -> torch.Tensor:
        """[N, D] -> [N, D]."""
        return self.down(self._act(self.gate_up(x_ND)))
