"""Token embedding. Shape letters: T tokens, V vocabulary, D hidden."""

from __future__ import annotations

import torch

from octavo.kernels.registry import EMBEDDING
from octavo.layers.build import Build


class Embedding:
    """A table of V rows."""

    def __init__(self, build: Build, vocab_size: int, hidden_size: int) -> None:
        self.weight_VD = build.parameter(
            "weight", vocab_size, hidden_size, dtype=build.weight_dtype
        )
        self._dtype = build.dtype
        self.weight_name = build.name("weight")
        self._run = build.dispatch.choose(EMBEDDING, build.case(vocab_size, hidden_size))

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, D]."""
        return self._run(token_ids_T, self.weight_VD).to(self._dtype)
