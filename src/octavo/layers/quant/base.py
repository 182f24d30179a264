"""What a quantization format is: which layers it stores, what it stores, and how it multiplies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeVar

import torch

Init = Literal["normal", "ones", "zeros"]
"""How dummy weights fill a tensor."""

StoredT = TypeVar("StoredT")


class Declares(Protocol):
    """What a format may use of `layers.build.Build`."""

    @property
    def device(self) -> torch.device:
        """Where the layer's tensors live."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""

    @property
    def finishers(self) -> list[Callable[[], None]]:
        """Called once, in order, when all weights are filled."""

    def note(self, local: str, tensor: torch.Tensor, init: Init) -> None:
        """Say that the checkpoint tensor `local` of this layer fills `tensor`."""


class QuantFormat(Protocol[StoredT]):
    """One format, read from the checkpoint's own description of itself. N rows, D in, O out."""

    def claims(self, names: tuple[str, ...], /) -> bool:
        """Whether the linear layer whose parts have these checkpoint names is stored in this format."""

    def stored(
        self, build: Declares, parts: tuple[tuple[str, int], ...], num_inputs: int, /
    ) -> StoredT:
        """Declare the layer's tensors through `build.note` and return what `apply` needs of them.

        Repacking, if any, goes to `build.finishers`.
        """

    def apply(
        self, x_ND: torch.Tensor, stored: StoredT, bias_O: torch.Tensor | None, /
    ) -> torch.Tensor:
        """[N, D] -> [N, O] in x's dtype."""
