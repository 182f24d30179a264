"""What the format of a quantized checkpoint is: which layers it stores, and what it stores. Kernels multiply."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch

from octavo.kernels.gemm.formats import Quantized
from octavo.layers.quant.spec import StoredSpec

Init = Literal["normal", "ones", "zeros", "levels", "scales", "words", "group_scales", "default"]
"""How dummy weights fill a tensor. Levels, and words of packed ones, are taken from a checkpoint in their own dtype or not
at all; scales may be one number there for all. A default holds already what a checkpoint means that lacks it."""


class Declares(Protocol):
    """What a format may use of `layers.build.Build`."""

    @property
    def device(self) -> torch.device:
        """Where the layer's tensors live."""

    def note(self, local: str, tensor: torch.Tensor, init: Init) -> None:
        """Say that the checkpoint tensor `local` of this layer fills `tensor`."""


class QuantFormat(Protocol):
    """One format, read from the checkpoint's own description of itself. D in, O out."""

    form: str
    """The row of `kernels/gemm/format_table.py` in which kernels keep the layers' weights; "" for plain numbers."""

    def __init__(self, spec: StoredSpec, form: str, /) -> None: ...

    @staticmethod
    def reads(spec: StoredSpec, /) -> bool:
        """Whether it is the format of checkpoints of that description."""

    def claims(self, names: tuple[str, ...], /) -> bool:
        """Whether the linear layer whose parts have these checkpoint names is stored in this format."""

    def stored(
        self, build: Declares, parts: tuple[tuple[str, int], ...], num_inputs: int, /
    ) -> Callable[[], Quantized]:
        """Declare the layer's tensors through `build.note`; what is returned reads them once they are filled."""
