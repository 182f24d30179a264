"""From hidden states to logits. Shape letters: N rows, D hidden, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.gemm.registry import LINEAR
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding


class Head:
    """The output projection; tied to the embedding's table or with its own."""

    def __init__(self, build: Build, embedding: Embedding, *, is_tied: bool) -> None:
        weight_VD = embedding.weight_VD
        if is_tied:
            build.aliases[build.name("weight")] = embedding.weight_name
        else:
            weight_VD = build.parameter("weight", *weight_VD.shape, dtype=build.weight_dtype)
        self._kernel = build.dispatch.choose(LINEAR, build.case(*weight_VD.shape))
        self._packed: Any = None

        def finish() -> None:
            self._packed = self._kernel.pack(weight_VD)

        build.finishers.append(finish)

    def __call__(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> float32 [N, V]."""
        return self._kernel.run(hidden_ND, self._packed, None).float()
