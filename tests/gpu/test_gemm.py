"""Products with quantized weights: the levels of the plain quantizer, multiplied as they say, on every kind of tile."""

from __future__ import annotations

import json

import pytest
import torch

from gpu_cases import DEVICE, random
from octavo.core.errors import ConfigError
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm import triton
from octavo.kernels.gemm.formats import FORMATS, Quantized, quantize, quantize_whole_rows
from octavo.kernels.gemm.quantized import TorchQuantized
from octavo.kernels.gemm.registry import LINEAR
from octavo.kernels.gemm.triton_blocks import TritonBlocks
from octavo.kernels.triton import tiles
from octavo.kernels.triton.quantize import quantize_rows
from octavo.kernels.triton.tiles import ROW_BUCKETS, Shape, Tile, choose_tile

SIZES = ((1, 1), (70, 203), (16, 0))
"""(O, D): one of each, a rest of every block, no inputs."""
ROWS = (0, 1, 19)
TOLERANCE = {"bfloat16": 8e-3, "float16": 1e-3}
"""Of the largest result: a unit in its last place, because the reference is rounded, too."""
TILES = (
    Tile(16, 64, shares=1),
    Tile(16, 64, shares=3, inputs=64),
    Tile(32, 128, shares=1, inputs=32, scales_weights=True, band=1),
)


def kernel_of(form: str, dtype: str, *sizes: int, is_invariant: bool = False):  # noqa: ANN201
    case = OpCase(device=DEVICE, dtype=dtype, weights=form, sizes=sizes, is_invariant=is_invariant)
    for name in LINEAR.candidates:
        candidate = LINEAR.candidates.load(name)
        if name.startswith("triton") and candidate.refuses(case) is None:
            return candidate(case)
    raise AssertionError(f"nobody takes {case}")


def close(got: torch.Tensor, wanted: torch.Tensor, dtype: str) -> None:
    assert got.dtype == getattr(torch, dtype) and got.shape == wanted.shape
    if wanted.numel():
        bound = TOLERANCE[dtype] * max(wanted.double().abs().max().item(), 1e-30)
        assert (got.double() - wanted.double()).abs().max().item() <= bound


@pytest.mark.parametrize("form", list(FORMATS))
def test_matches_the_levels(form: str) -> None:
    for place, (outputs, inputs) in enumerate(SIZES):
        dtype = ("bfloat16", "float16")[place % 2]
        kernel = kernel_of(form, dtype, outputs, inputs)
        weight_OD = random(outputs, inputs, dtype=kernel.stores("bfloat16"))
        packed = kernel.pack(weight_OD.clone())
        levels = quantize(weight_OD, FORMATS[form])
        if inputs:
            ids = torch.tensor([outputs - 1, 0, outputs - 1], device=DEVICE)
            assert torch.equal(
                kernel.rows(packed, ids), levels.dequantize()[ids].to(getattr(torch, dtype))
            )
        reference = TorchQuantized(kernel.case, rounds_rows=False)
        for rows in ROWS:
            x_ND = random(rows, inputs, dtype=dtype, seed=2)
            bias_O = random(outputs, dtype=dtype, seed=3) if rows > 1 else None
            close(kernel.run(x_ND, packed, bias_O), reference.run(x_ND, levels, bias_O), dtype)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("form", ["int4_g32_zp", "int4_g128", "fp8", "fp8_block"])
def test_every_tile_matches(form: str, tile: Tile) -> None:
    kernel = kernel_of(form, "float16", 70, 300)
    kernel.force_tile(tile)
    weight_OD, x_ND, bias_O = random(70, 300), random(35, 300, dtype="float16"), random(70)
    packed = kernel.pack(weight_OD)
    reference = TorchQuantized(kernel.case, rounds_rows=False)
    wanted = reference.run(x_ND, quantize(weight_OD, FORMATS[form]), bias_O.half())
    close(kernel.run(x_ND, packed, bias_O.half()), wanted, "float16")


def test_integer_sums_are_the_same_bits_in_any_tile() -> None:
    kernel = kernel_of("int8_w8a8", "bfloat16", 40, 300)
    packed = kernel.pack(random(40, 300))
    x_ND = random(20, 300, dtype="bfloat16")
    results = []
    for tile in TILES:
        kernel.force_tile(tile)
        results.append(kernel.run(x_ND, packed, None))
        assert torch.equal(kernel.run(x_ND[7:8], packed, None), results[-1][7:8])
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("form", ["int8", "int4", "fp8_block"])
def test_an_invariant_row_does_not_depend_on_the_others(form: str) -> None:
    kernel = kernel_of(form, "bfloat16", 20, 1100, is_invariant=True)
    packed = kernel.pack(random(20, 1100))
    x_ND = random(40, 1100, dtype="bfloat16")
    together = kernel.run(x_ND, packed, None)
    for row in (0, 39):
        assert torch.equal(kernel.run(x_ND[row : row + 1], packed, None), together[row : row + 1])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, which interprets
@pytest.mark.parametrize("form", ["int4", "fp8", "fp8_block"])
def test_rows_that_are_not_finite_fail_alone(form: str) -> None:
    kernel = kernel_of(form, "bfloat16", 20, 200)
    packed = kernel.pack(random(20, 200))
    x_ND = random(8, 200, dtype="bfloat16")
    wanted = kernel.run(x_ND, packed, None)
    for value in (torch.nan, -torch.inf):
        broken = x_ND.clone()
        broken[3, 150] = value
        got = kernel.run(broken, packed, None)
        assert not got[3].isfinite().any()
        others = torch.arange(8, device=DEVICE) != 3
        assert torch.equal(got[others], wanted[others])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_rounded_rows_are_those_of_torch(kind: str) -> None:
    """All magnitudes, ties, rows of zeros and of numbers near the smallest."""
    x_ND = random(12, 5000, scale=1.0)
    x_ND[1] *= 1e-20
    x_ND[2] = torch.arange(5000, device=DEVICE) * 0.0625 - 150
    x_ND[3] = torch.linspace(-1, 1, 5000, device=DEVICE) ** 9
    x_ND[4], x_ND[5], x_ND[6] = 0.0, 1e-42, 3e38
    x_ND[7] = 448.0 * torch.arange(5000, device=DEVICE).remainder(512) / 512
    dtype = torch.float8_e4m3fn if kind == "fp8" else torch.int8
    levels, scales = quantize_rows(x_ND, dtype)
    wanted_levels, wanted_scales = quantize_whole_rows(x_ND, kind)
    assert torch.equal(scales, wanted_scales)
    assert torch.equal(levels.float(), wanted_levels)


def test_levels_of_a_checkpoint_are_kept_as_they_are() -> None:
    for form, kind, dtype in (
        ("fp8", "fp8", torch.float8_e4m3fn),
        ("int8_w8a8", "int8", torch.int8),
        ("int8", "int8", torch.int8),
    ):
        kernel = kernel_of(form, "bfloat16", 20, 70)
        levels_OD, scales_O = quantize_whole_rows(random(20, 70), kind)
        scales_O1 = 2 * scales_O[:, None]
        given = Quantized(levels_OD.to(dtype), scales_O1, torch.zeros_like(scales_O1), 70)
        assert kernel.adopts(given)
        assert not kernel.adopts(given._replace(scales_OG=scales_O1.expand(20, 2)))
        assert not kernel.adopts(given._replace(levels_OD=levels_OD))
        packed = kernel.adopt(given)
        assert packed.levels_OD is given.levels_OD
        x_ND = random(3, 70, dtype="bfloat16")
        reference = TorchQuantized(kernel.case, rounds_rows=False)
        close(kernel.run(x_ND, packed, None), reference.run(x_ND, given, None), "bfloat16")


def test_weights_are_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for form in ("int4_g32_zp", "int8", "fp8", "fp8_block"):
        kernel = kernel_of(form, "bfloat16", 150, 70)
        weight_OD = random(150, 70)
        whole = kernel.pack(weight_OD)
        monkeypatch.setattr(triton, "_VALUES_AT_ONCE", 70 * 7)
        for one, other in zip(whole, kernel.pack(weight_OD), strict=True):
            if isinstance(one, torch.Tensor):
                assert torch.equal(one.float(), other.float())


def test_who_takes_what() -> None:
    def reasons(form: str, dtype: str) -> list[str | None]:
        case = OpCase(device=DEVICE, dtype=dtype, weights=form, sizes=(8, 8))
        kinds = (triton.TritonWeightOnly, triton.Triton8Bit, TritonBlocks)
        return [kind.refuses(case) for kind in kinds]

    for form in FORMATS:
        assert len([reason for reason in reasons(form, "bfloat16") if reason is None]) == 1
        assert all(reason and len(reason) > 10 for reason in reasons(form, "float32"))
    assert all(reason and len(reason) > 10 for reason in reasons("", "bfloat16"))
    wide = OpCase(device=DEVICE, dtype="float16", weights="int8_w8a8", sizes=(8, 1 << 18))
    assert "at most 131072 inputs" in (triton.Triton8Bit.refuses(wide) or "")


def test_tiles_of_every_shape_are_sound() -> None:
    for rows in (1, 16, 17, 100, 129, 4096, 1 << 20):
        for outputs, inputs in ((1, 1), (4096, 4096), (28672, 4096), (4096, 14336)):
            tile = choose_tile(Shape("w4", rows, outputs, inputs), device="none", units=132)
            assert 1 <= tile.shares <= max(1, inputs // 512)
            assert tile.shares == 1 or rows <= 128
            steady = choose_tile(
                Shape("w4", rows, outputs, inputs), device="none", units=132, is_invariant=True
            )
            assert steady == choose_tile(
                Shape("w4", 1, outputs, inputs), device="none", units=132, is_invariant=True
            )
    assert choose_tile(Shape("w4", 1, 4096, 4096), device="none", units=132).shares > 1
    assert list(ROW_BUCKETS) == sorted(ROW_BUCKETS)


def test_a_measured_tile_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    tile = Tile(32, 32, shares=2)
    row = {"kind": "w4", "max_rows": 16, "outputs": 64, "inputs": 64, "tile": tile._asdict()}
    monkeypatch.setattr(tiles, "TUNED", tmp_path)
    tiles.tuned_path("Some GPU-80 (x)").write_text(json.dumps({"tiles": [row]}))
    assert (tmp_path / "gemm-some-gpu-80-x.json").exists()
    assert choose_tile(Shape("w4", 9, 64, 64), device="Some GPU-80 (x)", units=9) == tile
    assert choose_tile(Shape("w4", 17, 64, 64), device="Some GPU-80 (x)", units=9) != tile
    for bad in ({**row, "tile": {"rows": 24, "outputs": 16}}, {**row, "tile": {"x": 1}}, {}):
        with pytest.raises(ConfigError, match="not a table of tiles"):
            tiles.read_tuned(json.dumps({"tiles": [bad]}), "table")


@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float16, torch.float32])
def test_int4_levels_of_a_checkpoint_are_kept_as_they_are(scale: torch.dtype) -> None:
    """Bit by bit as an embedding, and in products; scales stay in the dtype that has all of them."""
    for form, outputs, inputs in (
        ("int4_g32_zp", 20, 70),
        ("int4_g64", 33, 256),
        ("int4_g128_zp", 5, 256),
    ):
        kernel = kernel_of(form, "float16", outputs, inputs)
        group, groups = FORMATS[form].group, -(-inputs // FORMATS[form].group)
        levels_OD = torch.arange(outputs * inputs, device=DEVICE).view(outputs, inputs) * 7 % 16
        scales_OG = (random(outputs, groups).abs() / 30 + 0.01).to(scale).float()
        zeros_OG = torch.full_like(scales_OG, 8.0)
        if FORMATS[form].has_zeros:
            zeros_OG = (
                (torch.arange(outputs * groups, device=DEVICE) % 16).view(outputs, groups).float()
            )
        given = Quantized(levels_OD.to(torch.uint8), scales_OG, zeros_OG, group)
        assert kernel.adopts(given)
        assert not kernel.adopts(given._replace(group=2 * group))
        assert kernel.adopts(given._replace(zeros_OG=zeros_OG + 1)) == FORMATS[form].has_zeros
        packed = kernel.adopt(given)
        assert packed.scales_GO.dtype == scale
        ids = torch.arange(outputs, device=DEVICE)
        assert torch.equal(kernel.rows(packed, ids), given.dequantize().half())
        reference = TorchQuantized(kernel.case, rounds_rows=False)
        for rows in ROWS:
            x_ND = random(rows, inputs, dtype="float16")
            for tile in TILES:
                kernel.force_tile(tile)
                got = kernel.run(x_ND, packed, None)
                close(got, reference.run(x_ND, given, None), "float16")
