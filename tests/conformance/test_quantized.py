"""Weights quantized at load: every kernel packs the levels of the plain quantizer, and multiplies as they say."""

from __future__ import annotations

import pytest
import torch

from octavo.core.errors import ConfigError
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import QuantWeight, taken_levels
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.formats import FORMATS, WeightFormat, check_device, quantize, weight_format
from octavo.kernels.gemm.quantized import TorchQuantized
from octavo.kernels.gemm.registry import LINEAR

SIZES = ((1, 1), (16, 8), (17, 5), (33, 64), (48, 513), (130, 1027), (300, 70), (16, 0))
"""(O, D): whole panels, one output more, one fewer, groups with a rest, many panels, no inputs."""
ROWS = (0, 1, 2, 5, 6, 7, 13, 40)
ISAS = extension.runnable_isas()
ERROR = {8: 0.012, 4: 0.13}
"""Largest root-mean-square error of normal weights, relative to them, by bits."""
FP8_ERROR = 0.03
CPU_FORMATS = {name: form for name, form in FORMATS.items() if not form.rows}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def error_of(form: WeightFormat) -> float:
    return FP8_ERROR if form.rows == "fp8" else ERROR[form.bits]


def packed_as(name: str, weight_OD: torch.Tensor) -> QuantWeight:
    form = FORMATS[name]
    return QuantWeight(weight_OD, bits=form.bits, group=form.group, has_zeros=form.has_zeros)


@pytest.mark.parametrize("form", list(FORMATS))
@pytest.mark.parametrize("name", list(LINEAR.candidates))
def test_refuses_or_matches_the_levels(name: str, form: str) -> None:
    candidate = LINEAR.candidates.load(name)
    for outputs, inputs in SIZES:
        case = OpCase(device="cpu", dtype="float32", weights=form, sizes=(outputs, inputs))
        reason = candidate.refuses(case)
        if reason is not None:
            assert len(reason) > 10
            continue
        kernel = candidate(case)
        weight_OD = random(outputs, inputs).to(getattr(torch, kernel.stores("bfloat16")))
        packed = kernel.pack(weight_OD.clone())
        levels = quantize(weight_OD, FORMATS[form])
        if inputs:
            ids = torch.randint(outputs, (9,), generator=torch.Generator().manual_seed(1))
            assert torch.equal(kernel.rows(packed, ids), levels.dequantize()[ids])
        reference = TorchQuantized(case)
        for rows in ROWS:
            x_ND, bias_O = random(rows, inputs, seed=2), random(outputs, seed=3)
            for bias in (None, bias_O):
                got = kernel.run(x_ND, packed, bias)
                wanted = reference.run(x_ND, levels, bias)
                assert got.dtype == x_ND.dtype and got.shape == wanted.shape
                torch.testing.assert_close(
                    got, wanted, rtol=0, atol=2e-6 * (inputs + 1) ** 0.5 + 1e-6
                )


@pytest.mark.parametrize("form", list(FORMATS))
def test_error_of_normal_weights(form: str) -> None:
    weight_OD = random(64, 1024)
    error = (quantize(weight_OD, FORMATS[form]).dequantize() - weight_OD).norm() / weight_OD.norm()
    assert error < error_of(FORMATS[form])


def test_wider_and_smaller_weights_keep_their_relative_error() -> None:
    for form in FORMATS.values():
        for factor in (1e-30, 1e-3, 1e30):
            weight_OD = random(16, 128) * factor
            error = (quantize(weight_OD, form).dequantize() - weight_OD).double()
            assert error.norm() / weight_OD.double().norm() < error_of(form)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", list(CPU_FORMATS))
def test_every_instruction_set_gives_the_same_bits(form: str, isa: str) -> None:
    for outputs, inputs in SIZES:
        packed = packed_as(form, random(outputs, inputs))
        for rows in (1, 4, 7, 31, 50):
            x_ND, bias_O = random(rows, inputs), random(outputs)
            wanted, got = torch.empty(rows, outputs), torch.empty(rows, outputs)
            packed.multiply(x_ND, wanted, bias_O, isa="scalar")
            packed.multiply(x_ND, got, bias_O, isa=isa, num_threads=3)
            assert torch.equal(got, wanted), (rows, outputs, inputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", list(CPU_FORMATS))
def test_sums_of_the_largest_numbers_are_exact(form: str, isa: str) -> None:
    """Weights and inputs of one size, so that all quantize to the largest number, in every combination of signs."""
    weight_OD, x_ND = random(80, 256).sign(), random(3, 256).sign()
    weight_OD[:16] = 1.0
    x_ND[0] = -1.0
    packed = packed_as(form, weight_OD)
    wanted, got = torch.empty(3, 80), torch.empty(3, 80)
    packed.multiply(x_ND, wanted, isa="scalar")
    for row in range(3):
        packed.multiply(x_ND[row : row + 1], got[row : row + 1], isa=isa)
    assert torch.equal(got, wanted)
    if form == "int8":
        torch.testing.assert_close(got, x_ND @ weight_OD.T)


@pytest.mark.parametrize("form", ["int8", "int4", "int4_g32", "int4_g128"])
def test_a_row_does_not_depend_on_the_others(form: str) -> None:
    """300 random batches: each row has the bits that it has alone."""
    generator = torch.Generator().manual_seed(1)
    packed = packed_as(form, random(70, 300))
    x_ND = torch.randn(64, 300, generator=generator)
    alone_NO = torch.empty(64, 70)
    for row in range(64):
        packed.multiply(x_ND[row : row + 1], alone_NO[row : row + 1])
    for _ in range(300):
        count = int(torch.randint(1, 65, (1,), generator=generator))
        chosen = torch.randperm(64, generator=generator)[:count]
        got = torch.empty(count, 70)
        threads = int(torch.randint(1, 4, (1,), generator=generator))
        packed.multiply(x_ND[chosen], got, num_threads=threads)
        assert torch.equal(got, alone_NO[chosen])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", ["int8", "int4"])
def test_rows_that_are_not_finite_fail_alone(form: str, isa: str) -> None:
    packed = packed_as(form, random(20, 200))
    x_ND = random(8, 200)
    wanted, got = torch.empty(8, 20), torch.empty(8, 20)
    packed.multiply(x_ND, wanted, isa=isa)
    for value in (torch.nan, torch.inf, -torch.inf):
        broken = x_ND.clone()
        broken[3, 150] = value
        packed.multiply(broken, got, isa=isa)
        assert not got[3].isfinite().any()
        others = torch.arange(8) != 3
        assert torch.equal(got[others], wanted[others])


def test_extreme_rows() -> None:
    packed = packed_as("int8", random(20, 200))
    x_ND = torch.stack((torch.zeros(200), torch.full((200,), 1e-42), torch.full((200,), 3e38)))
    got = torch.empty(3, 20)
    packed.multiply(x_ND, got)
    assert not got[0].any() and not got[1].any()
    assert not got[2].isnan().any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_smallest_scales_give_the_same_bits(dtype: torch.dtype, isa: str) -> None:
    """AVX-512 multiplies scales by a sixteenth; smaller ones than 2^-122 are taken as 0, in float32."""
    generator = torch.Generator().manual_seed(3)
    levels_OD = torch.randint(16, (32, 256), generator=generator, dtype=torch.uint8)
    tiny = torch.finfo(dtype).tiny
    scales_OG = (torch.rand(32, 8, generator=generator) * 40 * tiny).to(dtype)
    scales_OG[:, 3] = tiny / 8
    packed = taken_levels(levels_OD, scales_OG, None, 32)
    x_ND = random(7, 256) * 2.0**100
    for rows in (1, 7):
        wanted, got = torch.empty(rows, 32), torch.empty(rows, 32)
        packed.multiply(x_ND[:rows], wanted, isa="scalar")
        packed.multiply(x_ND[:rows], got, isa=isa)
        assert wanted.any() and torch.equal(got, wanted)
    kept_OG = scales_OG.float()
    if dtype == torch.float32:
        kept_OG = torch.where(kept_OG < 2.0**-122, 0.0, kept_OG)
        assert not kept_OG.all() and kept_OG.any()
    rows_OD = torch.empty(32, 256)
    packed.rows(torch.arange(32), rows_OD)
    assert torch.equal(rows_OD, (levels_OD.float() - 8) * kept_OG.repeat_interleave(32, 1))


def test_bad_input() -> None:
    packed = packed_as("int4", torch.zeros(8, 64))
    for form in ({"bits": 3}, {"bits": 4, "group": 48}, {"bits": 8, "num_threads": 0}):
        with pytest.raises(ValueError, match="expected"):
            QuantWeight(torch.zeros(2, 2), **form)
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        QuantWeight(torch.zeros(2, 2, dtype=torch.float64), bits=8)
    with pytest.raises(ValueError, match="x: expected"):
        packed.multiply(torch.zeros(1, 63), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="no row of 8"):
        packed.rows(torch.tensor([0, 8]), torch.zeros(2, 64))
    with pytest.raises(ValueError, match="ids: expected"):
        packed.rows(torch.tensor([0.0]), torch.zeros(1, 64))
    with pytest.raises(ConfigError, match="Did you mean 'int4_g64'"):
        weight_format("int4_g63")


def test_formats_for_gpus_are_refused_elsewhere() -> None:
    for form in ("fp8", "fp8_block", "int8_w8a8"):
        check_device(form, "cuda")
        with pytest.raises(ConfigError, match=f"{form} .* runs on CUDA devices, not on cpu"):
            check_device(form, "cpu")
    for form in ("", *CPU_FORMATS):
        check_device(form, "cpu")
