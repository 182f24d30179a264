"""Rows of activations that are rounded to 8 bits: what passes from whoever rounds them to a product."""

from __future__ import annotations

from typing import NamedTuple

import torch

LARGEST = torch.tensor(127.0)
"""Of int8. A tensor: for a plain number torch would multiply by the inverse, which rounds twice."""
FP8_LARGEST = torch.tensor(448.0)
"""Of e4m3 (https://arxiv.org/abs/2209.05433)."""
TINY = torch.finfo(torch.float32).tiny * 128
"""Below it the largest of some values counts as zero, because its inverse would not be finite."""
LEVEL_DTYPES = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
"""Of levels, by `WeightFormat.rows`."""


class Rounded(NamedTuple):
    """Rows as levels: value = level * scale of its row."""

    levels_ND: torch.Tensor
    """int8 or float8_e4m3fn."""
    scales_N: torch.Tensor
    """float32."""
    dtype: torch.dtype
    """Of the rows before, and of what is made of them."""


def quantize_groups(x_ND: torch.Tensor, kind: str, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `quantize_whole_rows`, with a scale per group of inputs, float32 [N, G]; the last group may be smaller."""
    rows, inputs = x_ND.shape
    padded_ND = torch.nn.functional.pad(x_ND, (0, -inputs % group))
    num_groups = padded_ND.shape[1] // group
    levels_Xg, scales_X = quantize_whole_rows(padded_ND.reshape(rows * num_groups, group), kind)
    levels_ND = levels_Xg.reshape(padded_ND.shape)[:, :inputs]
    return levels_ND, scales_X.view(rows, num_groups)


def quantize_whole_rows(x_ND: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as float32 levels [N, D] of `kind` (int8 or fp8) and one scale each, float32 [N]."""
    wide_ND = x_ND.float()
    largest = (FP8_LARGEST if kind == "fp8" else LARGEST).to(x_ND.device)
    largest_N = wide_ND.abs().amax(1) if wide_ND.shape[1] else wide_ND.new_zeros(len(wide_ND))
    is_zero_N = largest_N < TINY
    inverse_N = torch.where(is_zero_N, 0.0, largest / largest_N)
    scales_N = torch.where(is_zero_N, 0.0, largest_N / largest)
    levels_ND = wide_ND * inverse_N[:, None]
    if kind == "fp8":
        levels_ND = levels_ND.clamp(-448, 448).to(torch.float8_e4m3fn).float()
    else:
        levels_ND = levels_ND.round()
    return levels_ND, scales_N
