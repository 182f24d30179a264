"""Quantization formats as literal rows, by the `quant_method` of config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.core.registry import Registry

if TYPE_CHECKING:
    from octavo.layers.quant.base import QuantFormat

QUANT_FORMATS: Registry[type[QuantFormat[Any]]] = Registry("quantization format", {})
