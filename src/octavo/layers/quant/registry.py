"""Formats of quantized checkpoints as literal rows; the first that `reads` a description takes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.core.registry import Registry

if TYPE_CHECKING:
    from octavo.layers.quant.base import QuantFormat

QUANT_FORMATS: Registry[type[QuantFormat]] = Registry(
    "quantization format",
    {
        "stored_levels": "octavo.layers.quant.levels:StoredLevels",
        "packed_levels": "octavo.layers.quant.packed:PackedLevels",
    },
)
