"""That the rest of this folder runs where it says it does."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from gpu_cases import DEVICE, random


@triton.jit
def _double(x, out, count, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < count) * 2, mask=i < count)


def test_a_kernel_runs() -> None:
    x = random(100)
    out = torch.empty_like(x)
    _double[(4,)](x, out, 100, BLOCK=32)
    assert out.device.type == DEVICE
    torch.testing.assert_close(out, 2 * x, rtol=0, atol=0)
