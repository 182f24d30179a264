"""Where the tests of `tests/gpu` run, and how they compare."""

from __future__ import annotations

import torch

from octavo.kernels.triton.support import is_interpreting

DEVICE = "cpu" if is_interpreting() else "cuda"
DTYPES = ("float32", "bfloat16", "float16")
ROW_TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-2, "float16": 4e-3}
"""Of row operations, absolute and relative: a rounding or two of the dtype on values of a few units."""


def random(*shape: int, dtype: str = "float32", scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    """The same normal numbers on every device."""
    generator = torch.Generator().manual_seed(sum(shape) + len(shape) + 1000 * seed)
    values = torch.randn(shape, generator=generator) * scale
    return values.to(getattr(torch, dtype)).to(DEVICE)
