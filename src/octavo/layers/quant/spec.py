"""How a checkpoint that is quantized already keeps its linear weights, as data. No torch."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.kernels.gemm.format_table import FORMATS

SCALE = "weight_scale"
"""Name of scales beside `weight`; the loader knows other spellings (`Spelling.renamed`)."""
BLOCKS = "fp8_block"
"""The format with scales of blocks."""
GROUPS = (128, 64, 32)
"""Inputs that share a scale in the kernels' int4 formats, largest first."""


class Packing(msgspec.Struct, frozen=True, kw_only=True):
    """Levels that lie together in 32-bit words, with scales of groups of inputs."""

    layout: Literal["awq", "gptq", "packed"]
    """Whose order of words and names; "packed" is compressed-tensors'."""
    bits: Literal[4, 8]
    group: int
    """Inputs that share a scale; 0: all of an output."""
    has_zeros: bool = False
    """Whether groups have zero points; without, zero is the level in the middle."""
    zeros_less: int = 0
    """How much less than they are zero points are stored."""
    is_ordered: bool = False
    """Whether groups may be of inputs that are no neighbours."""

    @property
    def kept_group(self) -> int:
        """The largest group of the kernels' that these groups are whole numbers of; 0: none."""
        return next((size for size in GROUPS if self.group % size == 0), 0)

    @property
    def form(self) -> str:
        """As `StoredSpec.form`."""
        if self.bits == 8:
            return "" if self.group or self.has_zeros else "int8"
        return f"int4_g{self.kept_group}" + "_zp" * self.has_zeros


class StoredSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of few bits and their scales; a value is its level, less its zero point if it has one, times its scale."""

    method: str
    """What config.json calls it."""
    kind: Literal["fp8", "int8", "int4"]
    block: tuple[int, int] | None = None
    """Outputs and inputs that share a scale; None: all inputs of an output, and perhaps all outputs."""
    packing: Packing | None = None
    """Set: levels are packed in words, and their groups are its own."""
    rounds_rows: bool = True
    """Whether activations are to be rounded to the same kind."""
    has_fixed_rows: bool = False
    """Whether the checkpoint has scales of activations. They are not read: each row gets its own, which is finer."""
    ignored: tuple[str, ...] = ()
    """Layers that are not quantized: full names, their beginnings or ends at a dot, or re:PATTERN."""

    @property
    def form(self) -> str:
        """The row of `kernels/gemm/format_table.py` that multiplies it as it is; "" where none does."""
        if self.packing is not None:
            return self.packing.form
        if self.block is not None:
            is_kept = self.kind == "fp8" and self.block[1] == FORMATS[BLOCKS].group
            return BLOCKS if is_kept and self.rounds_rows else ""
        if self.kind == "int8":
            return "int8_w8a8" if self.rounds_rows else "int8"
        return "fp8" if self.rounds_rows else ""

    @property
    def text(self) -> str:
        """For people."""
        if self.packing is not None:
            scales = f"scales per {self.packing.group}" if self.packing.group else ""
            scales = scales or "a scale per output"
            scales += " with zero points" * self.packing.has_zeros
        elif self.block is not None:
            scales = "scales per {}x{}".format(*self.block)
        else:
            scales = "a scale per output"
        return f"{self.kind} ({self.method}, {scales})"


def on_device(stored: StoredSpec | None, *, has_fp8: bool) -> StoredSpec | None:
    """The description for a device, which may have no products of e4m3: there blocks are widened as if rows were not rounded."""
    if stored is None or stored.form != BLOCKS or has_fp8:
        return stored
    return msgspec.structs.replace(stored, rounds_rows=False)


def kept_as(stored: StoredSpec | None, asked: str, device: str) -> str:
    """The format in which linear kernels keep weights: what is `asked` for at load, else the checkpoint's own.

    Where no kernel multiplies what the checkpoint has, it is "", the plain numbers, or int8 for integers, which hardly
    changes them.
    """
    if asked or stored is None:
        return asked
    if device == "cuda" or stored.kind == "int4":
        return stored.form
    return "int8" if stored.form and stored.kind == "int8" else ""
