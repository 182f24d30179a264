"""In which numbers linear weights are kept when they are quantized at load, and the plain way to quantize.

Round to nearest, no calibration data. int8 has one scale per output; int4 has one per group of inputs of an output,
rounded to bfloat16 before the values are, and perhaps a zero point. Shape letters: O outputs, D inputs, G groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from octavo.kernels.gemm.format_table import (
    FORMATS,
    WeightFormat,
    check_device,
    head_format,
    quantized_as,
    weight_format,
)
from octavo.kernels.rounded import LARGEST, TINY, quantize_groups, quantize_whole_rows

__all__ = [
    "FORMATS",
    "Quantized",
    "WeightFormat",
    "adopts_int4",
    "check_device",
    "head_format",
    "narrowed",
    "plain",
    "quantize",
    "quantize_groups",
    "quantize_rows",
    "quantize_whole_rows",
    "quantized_as",
    "weight_format",
]
"""The table itself is in `format_table.py`, which needs no torch, and passed on here."""


class Quantized(NamedTuple):
    """A weight as levels: value = (level - zero) * scale."""

    levels_OD: torch.Tensor
    """int32; int8 formats have levels -127 .. 127 and zero 0, int4 formats 0 .. 15. fp8: float32, each an e4m3. Of a
    checkpoint: int8, float8_e4m3fn, or uint8 for unsigned levels, as they are."""
    scales_OG: torch.Tensor
    """float32."""
    zeros_OG: torch.Tensor
    """float32."""
    group: int
    order_D: torch.Tensor | None = None
    """int64: which of the layer's inputs each column is, where groups are not of neighbours; None: its own."""

    def dequantize(self) -> torch.Tensor:
        """float32 [O, D], columns as levels have them."""
        inputs = self.levels_OD.shape[1]
        scales_OD = self.scales_OG.repeat_interleave(self.group, 1)[:, :inputs]
        zeros_OD = self.zeros_OG.repeat_interleave(self.group, 1)[:, :inputs]
        return (self.levels_OD.float() - zeros_OD) * scales_OD


def plain(levels: Quantized, dtype: torch.dtype) -> torch.Tensor:
    """The numbers that levels stand for, rounded once to `dtype`: [O, D], in the order of the layer's inputs.

    Some outputs after the other, to save memory.
    """
    outputs, inputs = levels.levels_OD.shape
    out_OD = torch.empty(outputs, inputs, dtype=dtype, device=levels.levels_OD.device)
    size = max(1, _VALUES_AT_ONCE // max(1, inputs))
    for start in range(0, outputs, size):
        part = slice(start, start + size)
        levels_PD, scales_PG, zeros_PG = (tensor[part] for tensor in levels[:3])
        some = Quantized(levels_PD, scales_PG, zeros_PG, levels.group)
        numbers_PD = some.dequantize().to(dtype)
        if levels.order_D is None:
            out_OD[part] = numbers_PD
        else:
            out_OD[part, levels.order_D] = numbers_PD
    return out_OD


def adopts_int4(levels: Quantized, form: WeightFormat) -> bool:
    """Whether levels of a checkpoint are those of an int4 format."""
    is_alike = form.bits == 4 and levels.group == form.group
    is_alike = is_alike and levels.levels_OD.dtype == torch.uint8
    return is_alike and (form.has_zeros or bool((levels.zeros_OG == 8).all()))


def narrowed(scales_OG: torch.Tensor) -> torch.Tensor:
    """The same numbers in 16 bits, where bfloat16 or float16 has all of them, else float32; contiguous."""
    for dtype in (torch.bfloat16, torch.float16):
        narrow_OG = scales_OG.to(dtype)
        if torch.equal(narrow_OG.float(), scales_OG):
            return narrow_OG.contiguous()
    return scales_OG.float().contiguous()


_VALUES_AT_ONCE = 1 << 22
_LANES = 8
"""Chains in which squared errors are summed, so that kernels can sum them in the same order."""
_CLIPPINGS = 7


def quantize(weight_OD: torch.Tensor, form: WeightFormat) -> Quantized:
    """`weight_OD` in `form`, in plain torch: what every kernel's own packing must equal, bit for bit.

    int8: scale max |w| / 127; fp8: max |w| / 448, of an output or of a block. int4 without zero points: the value of largest magnitude becomes level 0, that is -8, as
    in ggml's Q4_0; with them: levels 0 .. 15 span the group's range, 0 included. An int4 range is clipped by whichever
    of 1, 0.95, ... 0.7 leaves the smallest squared error.
    """
    weight_OD = weight_OD.float()
    outputs, inputs = weight_OD.shape
    group = form.group or max(1, inputs)
    if form.rows == "fp8" and form.group:
        return _quantize_blocks(weight_OD, form)
    if form.rows == "fp8":
        levels_OD, scales_O = quantize_whole_rows(weight_OD, "fp8")
        return Quantized(levels_OD, scales_O[:, None], torch.zeros_like(scales_O[:, None]), group)
    padded_OD = torch.nn.functional.pad(weight_OD, (0, -inputs % group))
    values_OGg = padded_OD.view(outputs, padded_OD.shape[1] // group, group)
    if form.bits == 8:
        largest_OG = values_OGg.abs().amax(2)
        scales_OG = torch.where(largest_OG < TINY, 0.0, largest_OG / 127.0)
        zeros_OG = torch.zeros_like(scales_OG)
        inverse_OG = torch.where(largest_OG < TINY, 0.0, LARGEST.to(largest_OG.device) / largest_OG)
        levels_OGg = torch.round(values_OGg * inverse_OG.unsqueeze(2))
    else:
        scales_OG, zeros_OG = _find_levels(values_OGg, has_zeros=form.has_zeros)
        levels_OGg = _levels(values_OGg, scales_OG, zeros_OG)
    levels_OD = levels_OGg.flatten(1)[:, :inputs].int()
    return Quantized(levels_OD, scales_OG, zeros_OG, group)


def _quantize_blocks(weight_OD: torch.Tensor, form: WeightFormat) -> Quantized:
    """One scale for `tall` outputs and `group` inputs; blocks at the ends may be smaller. B blocks of outputs, V values."""
    outputs, inputs = weight_OD.shape
    tall, wide = form.tall, form.group
    padded_OD = torch.nn.functional.pad(weight_OD, (0, -inputs % wide, 0, -outputs % tall))
    blocks, groups = padded_OD.shape[0] // tall, padded_OD.shape[1] // wide
    values_BGtw = padded_OD.view(blocks, tall, groups, wide).transpose(1, 2)
    levels_XV, scales_X = quantize_whole_rows(
        values_BGtw.reshape(blocks * groups, tall * wide), "fp8"
    )
    levels_BtGw = levels_XV.view(blocks, groups, tall, wide).transpose(1, 2)
    levels_OD = levels_BtGw.reshape(padded_OD.shape)[:outputs, :inputs]
    scales_OG = scales_X.view(blocks, groups).repeat_interleave(tall, 0)[:outputs]
    return Quantized(levels_OD, scales_OG, torch.zeros_like(scales_OG), wide)


def _find_levels(values_OGg: torch.Tensor, *, has_zeros: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps and zero points [O, G] of the clipping with the smallest squared error; the first of equals."""
    low_OG, high_OG = values_OGg.amin(2).clamp(max=0), values_OGg.amax(2).clamp(min=0)
    extreme_OG = torch.where(-low_OG >= high_OG, low_OG, high_OG)
    best_OG = torch.full_like(low_OG, torch.inf)
    step_OG, zero_OG = torch.zeros_like(low_OG), torch.full_like(low_OG, 8.0)
    for i in range(_CLIPPINGS):
        share = torch.tensor(1.0) - torch.tensor(0.05) * i
        wide_OG = (high_OG - low_OG) * share / 15.0 if has_zeros else extreme_OG * share / -8.0
        tried_OG = wide_OG.bfloat16().float()
        offset_OG = torch.full_like(low_OG, 8.0)
        if has_zeros:
            spread_OG = torch.round(-low_OG * share / tried_OG).clamp(0, 15)
            offset_OG = torch.where(tried_OG == 0, offset_OG, spread_OG)
        levels_OGg = _levels(values_OGg, tried_OG, offset_OG)
        off_OGg = (levels_OGg - offset_OG.unsqueeze(2)) * tried_OG.unsqueeze(2) - values_OGg
        error_OG = _sum_in_lanes(off_OGg * off_OGg)
        is_better_OG = (error_OG < best_OG) | (i == 0)
        best_OG = torch.where(is_better_OG, error_OG, best_OG)
        step_OG = torch.where(is_better_OG, tried_OG, step_OG)
        zero_OG = torch.where(is_better_OG, offset_OG, zero_OG)
    return step_OG, zero_OG


def _levels(values_OGg: torch.Tensor, step_OG: torch.Tensor, zero_OG: torch.Tensor) -> torch.Tensor:
    inverse_OG = torch.where(step_OG == 0, 0.0, 1.0 / step_OG)
    levels_OGg = torch.round(values_OGg * inverse_OG.unsqueeze(2)) + zero_OG.unsqueeze(2)
    return levels_OGg.clamp(0, 15)


def _sum_in_lanes(values_OGg: torch.Tensor) -> torch.Tensor:
    lanes_OGL = torch.zeros_like(values_OGg[..., :_LANES])
    for part_OGL in torch.split(values_OGg, _LANES, dim=2):
        lanes_OGL = lanes_OGL + part_OGL
    sum_OG = torch.zeros_like(lanes_OGL[..., 0])
    for lane in range(_LANES):
        sum_OG = sum_OG + lanes_OGL[..., lane]
    return sum_OG


def quantize_rows(x_ND: torch.Tensor, group: int) -> torch.Tensor:
    """Activations rounded to int8 levels with one scale per row and `group` inputs, as float64 values [N, D]."""
    inputs = x_ND.shape[1]
    padded_ND = torch.nn.functional.pad(x_ND.float(), (0, -inputs % group))
    values_NGg = padded_ND.view(len(x_ND), padded_ND.shape[1] // group, group)
    largest_NG1 = values_NGg.abs().amax(2, keepdim=True)
    inverse_NG1 = torch.where(largest_NG1 < TINY, 0.0, LARGEST / largest_NG1)
    levels_NGg = torch.round(values_NGg * inverse_NG1).double()
    return (levels_NGg * (largest_NG1 / 127.0).double()).flatten(1)[:, :inputs]
