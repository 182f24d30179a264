"""How a checkpoint that is quantized already keeps its linear weights, as data. No torch."""

from __future__ import annotations

from typing import Literal

import msgspec

SCALE = "weight_scale"
"""Name of scales beside `weight`; the loader knows other spellings (`Spelling.renamed`)."""


class StoredSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of 8 bits and their scales; a value is its level times its scale."""

    method: str
    """What config.json calls it."""
    kind: Literal["fp8", "int8"]
    block: tuple[int, int] | None = None
    """Outputs and inputs that share a scale; None: all inputs of an output, and perhaps all outputs."""
    rounds_rows: bool = True
    """Whether activations are to be rounded to the same kind."""
    has_fixed_rows: bool = False
    """Whether the checkpoint has scales of activations. They are not read: each row gets its own, which is finer."""
    ignored: tuple[str, ...] = ()
    """Layers that are not quantized: full names, their beginnings or ends at a dot, or re:PATTERN."""

    @property
    def form(self) -> str:
        """The row of `kernels/gemm/format_table.py` that multiplies it as it is; "" where none does."""
        if self.block is not None:
            return ""
        if self.kind == "int8":
            return "int8_w8a8" if self.rounds_rows else "int8"
        return "fp8" if self.rounds_rows else ""

    @property
    def text(self) -> str:
        """For people."""
        scales = (
            "a scale per output" if self.block is None else "scales per {}x{}".format(*self.block)
        )
        return f"{self.kind} ({self.method}, {scales})"


def kept_as(stored: StoredSpec | None, asked: str, device: str) -> str:
    """The format in which linear kernels keep weights: what is `asked` for at load, else the checkpoint's own.

    Where no kernel multiplies what the checkpoint has, it is "", the plain numbers, or int8 for integers, which hardly
    changes them.
    """
    if asked or stored is None:
        return asked
    if device == "cuda":
        return stored.form
    return "int8" if stored.form and stored.kind == "int8" else ""
