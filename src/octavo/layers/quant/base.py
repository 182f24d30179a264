"""What a quantization format is: which layers it stores, what it stores, and how it multiplies."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch

from octavo.layers.build import Build

StoredT = TypeVar("StoredT")


class QuantFormat(Protocol[StoredT]):
    """One format, read from the checkpoint's own description of itself. N rows, D in, O out."""

    def claims(self, names: tuple[str, ...], /) -> bool:
        """Whether the linear layer whose parts have these checkpoint names is stored in this format."""

    def stored(
        self, build: Build, parts: tuple[tuple[str, int], ...], num_inputs: int, /
    ) -> StoredT:
        """Declare the layer's tensors through `build.note` and return what `apply` needs of them.

        Repacking, if any, goes to `build.finishers`.
        """

    def apply(
        self, x_ND: torch.Tensor, stored: StoredT, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O] in x's dtype."""
