"""From hidden states to logits. Shape letters: N rows, D hidden, V vocabulary."""

from __future__ import annotations

from typing import Any

import torch

from octavo.kernels.gemm.format_table import head_format
from octavo.kernels.gemm.registry import LINEAR
from octavo.layers.build import Build
from octavo.layers.embedding import Embedding


class Head:
    """The output projection; tied to the embedding's table or with its own.

    If a tied head's kernel repacks, its packed form is the only table left, and the embedding reads that.
    """

    def __init__(self, build: Build, embedding: Embedding, *, is_tied: bool) -> None:
        if is_tied:
            name = embedding.weight_name
            build.aliases[build.name("weight")] = name
            weight_VD = embedding.weight_VD
        else:
            name = build.name("weight")
            weight_VD = build.parameter("weight", *embedding.shape, dtype=build.weight_dtype)
        form = head_format(build.quantization)
        self._kernel = build.dispatch.choose(LINEAR, build.case(*embedding.shape, weights=form))
        self._packed: Any = None

        def finish() -> None:
            self._packed = build.pack(self._kernel, weight_VD, (name,), form)
            if not is_tied:
                embedding.own()
            elif self._kernel.repacks:
                embedding.share(self._kernel, self._packed)

        build.finishers.append(finish)

    def __call__(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """[N, D] -> float32 [N, V]."""
        return self._kernel.run(hidden_ND, self._packed, None).float()
