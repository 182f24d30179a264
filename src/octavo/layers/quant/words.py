"""Integers of four or eight bits in 32-bit words, as checkpoints pack them. Shape letters: A, B rows and columns of words."""

from __future__ import annotations

import torch

AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ's words have output 0 .. 7: its packer takes 0, 2, 4, 6, 1, 3, 5, 7
(https://github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py)."""


def unpack(words_AB: torch.Tensor, bits: int, *, along: int, is_awq: bool = False) -> torch.Tensor:
    """uint8: rows (`along` 0) or columns (1) become eight, or four, times as many. The lowest bits are the first."""
    bytes_ABb = words_AB.contiguous().view(torch.uint8).view(*words_AB.shape, 4)
    if bits == 8:
        levels_ABl = bytes_ABb
    else:
        levels_ABl = torch.stack((bytes_ABb & 15, bytes_ABb >> 4), 3).flatten(2)
    if is_awq:
        levels_ABl = levels_ABl[:, :, list(AWQ_ORDER)]
    if along == 1:
        return levels_ABl.flatten(1)
    return levels_ABl.transpose(1, 2).flatten(0, 1)


def added(words_AB: torch.Tensor, amount: int, bits: int) -> torch.Tensor:
    """`amount` more in each field, the carry of one going to the next.

    So a packer that took it away from whole words gets back what it had, be a field 0
    (https://github.com/ModelCloud/GPTQModel, gptqmodel/utils/model.py, v1 to v2).
    """
    ones = 0x11111111 if bits == 4 else 0x01010101
    return words_AB + amount * ones


def filled(value: int, bits: int) -> int:
    """The word whose fields are all `value`, as an int32."""
    word = value * (0x11111111 if bits == 4 else 0x01010101)
    return word - (1 << 32 if word >= 1 << 31 else 0)
