"""Residual sum, norm and rounding in one pass: what two passes give, and what the plain operation says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpu_cases import DEVICE, random
from octavo.kernels import ops
from octavo.kernels.rounded import LEVEL_DTYPES, Rounded
from octavo.kernels.triton.norm_rounded import add_rms_norm_rounded
from octavo.kernels.triton.quantize import quantize_rows
from octavo.kernels.triton.rows import add_rms_norm, rms_norm
from octavo.kernels.triton.support import is_interpreting
from octavo.layers.build import Build
from octavo.layers.mlp import GatedMlp
from octavo.layers.norm import RmsNorm

EPS = 1e-6
STEPS = {"int8": 1.0, "fp8": 32.0}
"""Between neighbouring levels, at most."""

MOVED = {"bfloat16": 0.25, "float16": 0.02}
"""Share of levels that may be their neighbours where the norm's last bit differs, which moves the scale of the row, too."""


def same(one: torch.Tensor, other: torch.Tensor, kind: str) -> None:
    """Bit for bit in the interpreter; on a device, where two passes may fuse multiply-adds otherwise, the next level too."""
    if is_interpreting():
        assert torch.equal(one.float(), other.float())
    else:
        assert (one.float() - other.float()).abs().max() <= STEPS[kind]


@pytest.mark.parametrize("kind", LEVEL_DTYPES)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.inference_mode()
def test_one_pass_is_two(dtype: str, kind: str) -> None:
    for rows, size in ((0, 8), (1, 1), (3, 70), (2, 1100)):
        x, weight = random(rows, size, dtype=dtype, scale=3.0), random(size, dtype=dtype)
        residual = random(rows, size, dtype=dtype, seed=1)
        for given in (residual, None):
            mine = None if given is None else given.clone()
            got, total = add_rms_norm_rounded(x.clone(), mine, weight, EPS, kind)
            if given is None:
                normed, summed = rms_norm(x, weight, EPS), x
            else:
                normed, summed = add_rms_norm(x.clone(), given.clone(), weight, EPS)
            levels, scales = quantize_rows(normed, LEVEL_DTYPES[kind])
            assert got.dtype == x.dtype and got.levels_ND.dtype == LEVEL_DTYPES[kind]
            assert torch.equal(total, summed)
            if not rows:
                continue
            same(got.levels_ND, levels, kind)
            torch.testing.assert_close(
                got.scales_N, scales, rtol=0 if is_interpreting() else 0.01, atol=0
            )
            plain, _ = ops.add_rms_norm_rounded(x, given, weight, EPS, kind)
            off = (got.levels_ND.float() - plain.levels_ND.float()).abs()
            # A last bit of bfloat16 is a step of the largest levels, and the scale may be off by two.
            steps = STEPS[kind] * (4 if dtype == "bfloat16" else 1)
            assert off.max() <= steps and (off > 0).float().mean() < MOVED[dtype]
            torch.testing.assert_close(got.scales_N, plain.scales_N, rtol=0.02, atol=0)


@torch.inference_mode()
def test_a_row_that_is_not_finite_fails_alone() -> None:
    x, weight = random(3, 40, dtype="bfloat16"), random(40, dtype="bfloat16")
    wanted, _ = add_rms_norm_rounded(x, None, weight, EPS, "int8")
    broken = x.clone()
    broken[1, 7] = torch.nan
    got, _ = add_rms_norm_rounded(broken, None, weight, EPS, "int8")
    assert got.scales_N[1].isnan()
    for row in (0, 2):
        assert torch.equal(got.levels_ND[row], wanted.levels_ND[row])
        assert got.scales_N[row] == wanted.scales_N[row]


@pytest.mark.parametrize("form", ["int8_w8a8", "fp8", "int8"])
@torch.inference_mode()
def test_layers_hand_rounded_rows_on(form: str) -> None:
    """A norm before an MLP gives what it gives without; only formats that round rows by themselves are handed some."""
    build = Build(
        dtype=torch.bfloat16,
        device=torch.device(DEVICE),
        weight_dtype=torch.bfloat16,
        quantization=form,
    )
    norm, mlp = RmsNorm(build.at("norm"), 32, EPS), GatedMlp(build.at("mlp"), 32, 48, has_bias=True)
    norm.feed(build, mlp.gate_up.rounds_rows)
    for i, weight in enumerate(build.weights.values()):
        weight.tensor.copy_(random(*weight.tensor.shape, seed=i))
    for finish in build.finishers:
        finish()
    x, residual = random(5, 32, dtype="bfloat16"), random(5, 32, dtype="bfloat16", seed=9)
    wanted: Any = norm.add(x.clone(), residual.clone())[0]
    rounded, _ = norm.add_for(x.clone(), residual.clone())
    assert isinstance(rounded, Rounded) == (form != "int8")
    got, apart = mlp(rounded), mlp(wanted)
    if is_interpreting():
        assert torch.equal(got, apart)
    else:
        torch.testing.assert_close(got, apart, rtol=0.05, atol=0.05 * apart.abs().max().item())
