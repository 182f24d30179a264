"""Norms, rotation, activation and gathers by Triton kernels (`kernels/triton`). Loads no triton until a case was taken."""

from __future__ import annotations

from typing import Any

from octavo.kernels.triton.support import TritonFunction

MAX_ROW = 65536
"""Features of a row that one program holds."""


def _rows(name: str, max_size: int | None = None) -> TritonFunction[..., Any]:
    return TritonFunction(f"octavo.kernels.triton.rows:{name}", max_size=max_size)


RMS_NORM = _rows("rms_norm", MAX_ROW)
ADD_RMS_NORM = _rows("add_rms_norm", MAX_ROW)
ADD_RMS_NORM_ROUNDED: TritonFunction[..., Any] = TritonFunction(
    "octavo.kernels.triton.norm_rounded:add_rms_norm_rounded", max_size=MAX_ROW
)
LAYER_NORM = _rows("layer_norm", MAX_ROW)
ADD_LAYER_NORM = _rows("add_layer_norm", MAX_ROW)
SILU_AND_MUL = _rows("silu_and_mul")
ACTIVATE = _rows("activate")
ACTIVATE_AND_MUL = _rows("activate_and_mul")
EMBEDDING = _rows("embedding")
ATTENTION_INPUTS: TritonFunction[..., Any] = TritonFunction(
    "octavo.kernels.triton.inputs:attention_inputs"
)
