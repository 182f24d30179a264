"""Token embedding. Shape letters: T tokens, V vocabulary, D hidden."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.gemm.base import LinearKernel
from octavo.kernels.recording import recompute
from octavo.kernels.registry import EMBEDDING
from octavo.layers.build import Build


class Embedding:
    """A table of V rows: its own, or, once `share` was called, the one that a tied head has packed."""

    def __init__(self, build: Build, vocab_size: int, hidden_size: int) -> None:
        self.shape = (vocab_size, hidden_size)
        self.weight_name = build.name("weight")
        self._table: torch.Tensor | None = build.parameter(
            "weight", vocab_size, hidden_size, dtype=build.weight_dtype
        )
        self._dtype = build.dtype
        self._gather = build.dispatch.choose(EMBEDDING, build.case(vocab_size, hidden_size))
        self._shared: tuple[LinearKernel, Any] | None = None

    @property
    def weight_VD(self) -> torch.Tensor:
        """The table, until it is shared."""
        assert self._table is not None, "the head has it"
        return self._table

    def own(self) -> None:
        """Copy the table if it is a view of a file, which may change or shrink while the model is served."""
        self._table = self.weight_VD.clone()

    def share(self, kernel: LinearKernel, packed: Any) -> None:
        """Drop the table and read rows of what `kernel` packed from it."""
        self._table = None
        self._shared = (kernel, packed)

    def __call__(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        """int64 [T] -> [T, D]."""
        if self._shared is None:
            return recompute(self._rows, token_ids_T)[0]
        kernel, packed = self._shared
        return kernel.rows(packed, token_ids_T)

    def _rows(self, token_ids_T: torch.Tensor) -> tuple[torch.Tensor]:
        return (self._gather(token_ids_T, self.weight_VD).to(self._dtype),)
