"""What layers are built with: dtype, device, kernels, quantization, and the names of their weights.

A layer asks for parameters by name; the `Build` allocates them and notes under which checkpoint name each (or each
part of a merged one) is filled. Loading is then a walk over `weights`, and no layer knows about files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch

from octavo.kernels.dispatch import Dispatcher, OpCase
from octavo.kernels.gemm.base import LinearKernel
from octavo.layers.quant.base import Init, QuantFormat


class Ahead(Protocol):
    """Has packed weights before they were loaded (`models/ahead.py`)."""

    def take(self, names: tuple[str, ...], weights: str) -> Any:
        """What the compiled kernels packed of these checkpoint tensors in the format `weights`; None if nothing."""


class Weight(NamedTuple):
    """Where a checkpoint tensor goes: a parameter, or a view of its part of a merged one."""

    tensor: torch.Tensor
    init: Init
    """How dummy weights fill it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Shared by all layers of a model; `at` gives the same build under a longer prefix."""

    dtype: torch.dtype
    device: torch.device
    weight_dtype: torch.dtype
    """Of tables and linear weights until they are packed; the rest has `dtype`."""
    kv_dtype: str = "auto"
    """Of keys and values in the cache; "auto" is `dtype`."""
    dispatch: Dispatcher = field(default_factory=Dispatcher)
    quantization: str = ""
    """Format in which linear kernels keep their weights, quantized at load (`kernels/gemm/format_table.py`); "" for none."""
    quant: QuantFormat | None = None
    """Format of a checkpoint that is quantized already."""
    is_invariant: bool = False
    """Whether kernels must give a row the same bits in any batch."""
    ahead: Ahead | None = None
    prefix: str = ""
    weights: dict[str, Weight] = field(default_factory=dict)
    """Checkpoint name -> where it goes; each is filled exactly once."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Checkpoint name -> name in `weights` it must equal if it is present (tied embeddings)."""
    finishers: list[Callable[[], None]] = field(default_factory=list)
    """Called once, in order, when all weights are filled."""

    @property
    def dtype_name(self) -> str:
        """The dtype by torch's name without the module: "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def kv_dtype_name(self) -> str:
        """As `dtype_name`, of the cache."""
        return self.dtype_name if self.kv_dtype == "auto" else self.kv_dtype

    def at(self, name: str) -> Build:
        """The same build for the part called `name`."""
        return replace(self, prefix=self.name(name))

    def name(self, local: str) -> str:
        """Full checkpoint name of `local`."""
        return f"{self.prefix}.{local}" if self.prefix else local

    def pack(
        self,
        kernel: LinearKernel,
        weight_OD: torch.Tensor,
        names: tuple[str, ...],
        weights: str,
    ) -> Any:
        """The weight as `kernel` keeps it, in the format `weights`, unless that was made ahead of the checkpoint tensors
        `names`.
        """
        done = None if self.ahead is None else self.ahead.take(names, weights)
        if done is None:
            return kernel.pack(weight_OD)
        # lazy: only a CPU's kernels pack ahead, and not every build has them
        from octavo.kernels.cpu.gemm import packed_already

        return packed_already(done, weight_OD.shape)

    def case(self, *sizes: int, weights: str = "") -> OpCase:
        """The case of a simple op with these sizes."""
        return OpCase(
            device=self.device.type,
            dtype=self.dtype_name,
            weights=weights,
            is_invariant=self.is_invariant,
            sizes=sizes,
        )

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> torch.Tensor:
        """An unfilled parameter that is in no map yet."""
        return torch.empty(shape, dtype=dtype or self.dtype, device=self.device)

    def parameter(
        self, local: str, *shape: int, init: Init = "normal", dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """A parameter filled from the checkpoint tensor `prefix.local`."""
        tensor = self.empty(*shape, dtype=dtype)
        self.note(local, tensor, init)
        return tensor

    def note(self, local: str, tensor: torch.Tensor, init: Init) -> None:
        """Say that `prefix.local` fills `tensor`."""
        name = self.name(local)
        assert name not in self.weights, f"{name} is filled twice"
        self.weights[name] = Weight(tensor, init)
