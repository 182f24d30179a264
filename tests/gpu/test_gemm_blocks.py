"""Products of e4m3 weights with scales of blocks: shapes that no block divides, and a checkpoint's blocks kept as they are."""

from __future__ import annotations

import pytest
import torch

from gpu_cases import DEVICE, random
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import FORMATS, Quantized, quantize, quantize_groups
from octavo.kernels.gemm.quantized import TorchQuantized
from octavo.kernels.gemm.triton_blocks import TritonBlocks
from octavo.kernels.triton.quantize import quantize_row_groups
from octavo.kernels.triton.tiles import Tile
from octavo.layers.build import Build
from octavo.layers.linear import Linear
from octavo.layers.quant.levels import StoredLevels
from octavo.layers.quant.spec import StoredSpec

FORM = FORMATS["fp8_block"]
SIZES = ((256, 256), (130, 257), (129, 1), (1, 384), (127, 100), (300, 640))
"""(O, D): whole blocks; a rest of each; one output or input; less than a block."""
ROWS = (0, 1, 19)
"""None, one, and a block's rest."""
TOLERANCE = {"bfloat16": 8e-3, "float16": 1e-3}
"""Of the largest result: a unit in its last place, because the reference is rounded, too."""
TILES = (
    Tile(16, 64, shares=1),
    Tile(16, 64, shares=3),
    Tile(32, 128, shares=2, band=1),
    Tile(16, 256, shares=1),
)
"""The widest has outputs of two blocks."""


def kernel_of(dtype: str, *sizes: int) -> TritonBlocks:
    case = OpCase(device=DEVICE, dtype=dtype, weights="fp8_block", sizes=sizes)
    assert TritonBlocks.refuses(case) is None
    return TritonBlocks(case)


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: str) -> None:
    assert got.dtype == getattr(torch, dtype) and got.shape == wanted.shape
    bound = TOLERANCE[dtype] * wanted.double().abs().max().item() if wanted.numel() else 0.0
    assert wanted.numel() == 0 or (got.double() - wanted.double()).abs().max().item() <= bound


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("sizes", SIZES)
def test_matches_the_levels(sizes: tuple[int, int], dtype: str) -> None:
    kernel = kernel_of(dtype, *sizes)
    weight_OD = random(*sizes) * torch.linspace(0.01, 30, sizes[1], device=DEVICE)
    packed, levels = kernel.pack(weight_OD), quantize(weight_OD, FORM)
    assert packed.tall == 128 and packed.scales_GB.shape == (
        -(-sizes[1] // 128),
        -(-sizes[0] // 128),
    )
    ids = torch.tensor([sizes[0] - 1, 0], device=DEVICE)
    assert torch.equal(kernel.rows(packed, ids), levels.dequantize()[ids].to(getattr(torch, dtype)))
    reference = TorchQuantized(kernel.case)
    for rows in ROWS:
        x_ND = random(rows, sizes[1], dtype=dtype, seed=2)
        bias_O = random(sizes[0], dtype=dtype, seed=3) if rows > 1 else None
        wanted = reference.run(x_ND, levels, bias_O)
        for tile in (None, TILES[SIZES.index(sizes) % len(TILES)]):
            kernel.force_tile(tile)
            close(kernel.run(x_ND, packed, bias_O), wanted, dtype)


def test_rounded_groups_are_those_of_torch() -> None:
    """All magnitudes, groups of zeros and of the smallest numbers, one that is not finite among others."""
    for inputs in (1, 128, 1300):
        x_ND = random(7, inputs) * torch.logspace(-30, 30, inputs, device=DEVICE)
        x_ND[1], x_ND[2, inputs // 2 :], x_ND[3] = 0.0, 1e-42, 3e38
        x_ND[4] = 448.0 * torch.arange(inputs, device=DEVICE).remainder(512) / 512
        levels_ND, scales_GN = quantize_row_groups(x_ND, 128)
        wanted_ND, scales_NG = quantize_groups(x_ND, "fp8", 128)
        assert torch.equal(scales_GN.T, scales_NG)
        assert torch.equal(levels_ND.float(), wanted_ND)
    for value in (torch.nan, torch.inf):
        x_ND[5, 200] = value
        scales_NG = quantize_row_groups(x_ND, 128)[1].T
        assert scales_NG[5, 1].isnan() and scales_NG.isnan().sum() == 1


@pytest.mark.parametrize("parts", [(256, 128), (100, 60, 60)])
def test_blocks_of_a_checkpoint_are_kept_as_they_are(parts: tuple[int, ...]) -> None:
    """Matrices below each other; where the second does not begin with a block, each output has its scale."""
    outputs, inputs = sum(parts), 300
    kernel = kernel_of("bfloat16", outputs, inputs)
    found = [quantize(random(size, inputs, seed=size), FORM) for size in parts]
    scales_OG = 2 * torch.cat([each.scales_OG for each in found])
    levels_OD = torch.cat([each.levels_OD for each in found]).to(torch.float8_e4m3fn)
    given = Quantized(levels_OD, scales_OG, torch.zeros_like(scales_OG), 128)
    assert kernel.adopts(given)
    assert not kernel.adopts(given._replace(group=64))
    assert not kernel.adopts(given._replace(levels_OD=levels_OD.float()))
    packed = kernel.adopt(given)
    assert packed.levels_OD is given.levels_OD
    assert packed.tall == (128 if parts[0] == 256 else 1)
    ids = torch.arange(outputs, device=DEVICE)
    assert torch.equal(kernel.rows(packed, ids), given.dequantize().bfloat16())
    reference = TorchQuantized(kernel.case)
    for rows in ROWS:
        x_ND = random(rows, inputs, dtype="bfloat16")
        for tile in TILES[1::2]:
            kernel.force_tile(tile)
            close(kernel.run(x_ND, packed, None), reference.run(x_ND, given, None), "bfloat16")


def test_a_layer_takes_the_blocks_of_its_checkpoint() -> None:
    """Two matrices as the file has them, one product; no weight is rounded on the way."""
    spec = StoredSpec(method="fp8", kind="fp8", block=(128, 128))
    build = Build(
        dtype=torch.bfloat16,
        device=torch.device(DEVICE),
        weight_dtype=torch.bfloat16,
        quant=StoredLevels(spec, spec.form),
        prefix="layer",
    )
    parts, inputs = (("q", 130), ("k", 128)), 200
    linear = Linear(build, parts, inputs)
    scales_OG, levels_OD = [], []
    for name, size in parts:
        found = quantize(random(size, inputs, seed=size), FORM)
        build.weights[f"layer.{name}.weight"].tensor.copy_(found.levels_OD)
        scales_BG = found.scales_OG[::128]
        build.weights[f"layer.{name}.weight_scale"].tensor.copy_(scales_BG)
        levels_OD.append(found.levels_OD)
        scales_OG.append(found.scales_OG)
    for finish in build.finishers:
        finish()
    given = Quantized(
        torch.cat(levels_OD), torch.cat(scales_OG), torch.zeros(258, 2, device=DEVICE), 128
    )
    x_ND = random(5, inputs, dtype="bfloat16")
    assert build.dispatch.choices[-1].winner == "triton_blocks"
    case = OpCase(device=DEVICE, dtype="bfloat16", weights="fp8_block", sizes=(258, inputs))
    close(linear(x_ND), TorchQuantized(case).run(x_ND, given, None), "bfloat16")
