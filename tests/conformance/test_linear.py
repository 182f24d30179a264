"""Every linear kernel of the registry: on a grid of cases it refuses, or it matches a product in float64."""

from __future__ import annotations

import pytest
import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.gemm import PackedWeight
from octavo.kernels.dispatch import OpCase
from octavo.kernels.gemm.registry import LINEAR

TOLERANCE = {"float32": 2e-5, "bfloat16": 4e-2, "float16": 4e-3}
"""Per unit of sqrt(D), on inputs and weights of order 1."""
SIZES = ((1, 1), (16, 8), (17, 5), (33, 64), (48, 513), (130, 1027), (31, 2051))
"""(O, D): whole panels, one output more, one fewer, blocks of inputs with a rest."""
ROWS = (0, 1, 2, 3, 5, 6, 7, 16, 24, 25, 96, 97, 191, 193, 260)
ISAS = extension.runnable_isas()


def tensors(
    rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows * 10_007 + outputs * 101 + inputs)
    shapes = ((rows, inputs), (outputs, inputs), (outputs,))
    x_ND, weight_OD, bias_O = (torch.randn(shape, generator=generator) for shape in shapes)
    return x_ND.to(dtype), weight_OD.to(dtype), bias_O.to(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("checkpoint", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(LINEAR.candidates))
def test_refuses_or_matches(name: str, checkpoint: str, dtype: str) -> None:
    candidate = LINEAR.candidates.load(name)
    for outputs, inputs in SIZES:
        case = OpCase(device="cpu", dtype=dtype, sizes=(outputs, inputs))
        reason = candidate.refuses(case)
        if reason is not None:
            assert len(reason) > 10
            continue
        kernel = candidate(case)
        for rows in ROWS:
            x_ND, weight_OD, bias_O = tensors(rows, outputs, inputs, getattr(torch, dtype))
            weight_OD = weight_OD.to(getattr(torch, checkpoint))
            stored = weight_OD.to(getattr(torch, kernel.stores(checkpoint)))
            packed = kernel.pack(stored.clone())
            for bias in (None, bias_O):
                wanted = x_ND.double() @ stored.double().T + (0 if bias is None else bias.double())
                got = kernel.run(x_ND, packed, bias)
                assert got.dtype == x_ND.dtype and got.shape == wanted.shape
                error = (got.double() - wanted).abs().max().item() if rows else 0.0
                assert error <= TOLERANCE[dtype] * inputs**0.5, (rows, outputs, inputs, error)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_every_instruction_set_gives_the_same_bits(isa: str, stored: torch.dtype) -> None:
    for outputs, inputs in SIZES:
        for rows in (1, 4, 25, 97, 200):
            x_ND, weight_OD, bias_O = tensors(rows, outputs, inputs, torch.float32)
            packed = PackedWeight(weight_OD.to(stored))
            wanted, got = torch.empty(rows, outputs), torch.empty(rows, outputs)
            packed.multiply(x_ND, wanted, bias_O, isa="scalar")
            packed.multiply(x_ND, got, bias_O, isa=isa, num_threads=3)
            assert torch.equal(got, wanted), (rows, outputs, inputs)


def test_a_row_does_not_depend_on_the_others() -> None:
    """1,000 random batches: each row has the bits that it has alone."""
    generator = torch.Generator().manual_seed(1)
    weight_OD = torch.randn(70, 300, generator=generator).bfloat16()
    packed = PackedWeight(weight_OD)
    x_ND = torch.randn(220, 300, generator=generator)
    alone_NO = torch.empty(220, 70)
    for row in range(220):
        packed.multiply(x_ND[row : row + 1], alone_NO[row : row + 1])
    for _ in range(1000):
        size = int(torch.randint(1, 40, (1,), generator=generator)) ** 2 % 220 + 1
        chosen = torch.randint(0, 220, (size,), generator=generator)
        got = torch.empty(size, 70)
        packed.multiply(x_ND[chosen], got, num_threads=1 + size % 3)
        assert torch.equal(got, alone_NO[chosen])


def test_a_float32_weight_is_narrowed_only_where_nothing_is_lost() -> None:
    weight_OD = torch.randn(32, 64).bfloat16()
    assert PackedWeight(weight_OD).num_bytes == 32 * 64 * 2
    assert PackedWeight(weight_OD.float()).num_bytes == 32 * 64 * 2
    weight_OD = weight_OD.float()
    weight_OD[31, 63] = 1 + 2**-20
    assert PackedWeight(weight_OD).num_bytes == 32 * 64 * 4


def test_wrong_arrays_are_refused() -> None:
    packed = PackedWeight(torch.zeros(8, 4))
    x_ND, out_NO = torch.zeros(2, 4), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=r"x: expected torch.float32 \[2, 4\].*given .*\[2, 5\]"):
        packed.multiply(torch.zeros(2, 5), out_NO)
    with pytest.raises(ValueError, match="out: expected"):
        packed.multiply(x_ND, torch.zeros(3, 8))
    with pytest.raises(ValueError, match="bias"):
        packed.multiply(x_ND, out_NO, torch.zeros(7))
    with pytest.raises(ValueError, match="isa 'mmx' has no kernels"):
        packed.multiply(x_ND, out_NO, isa="mmx")
    for wrong in (x_ND.double(), x_ND.bfloat16(), torch.zeros(4, 2).T):
        with pytest.raises(ValueError, match="x: expected"):
            packed.multiply(wrong, out_NO)
    with pytest.raises(ValueError, match="weight: expected float32 or bfloat16"):
        PackedWeight(torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.usefixtures("rounded_products")
def test_rounded_products_are_those_of_rounded_inputs_in_any_batch() -> None:
    for outputs, inputs in SIZES:
        x_ND, weight_OD, bias_O = tensors(200, outputs, inputs, torch.float32)
        packed = PackedWeight(weight_OD.bfloat16())
        wanted = x_ND.bfloat16().double() @ weight_OD.bfloat16().double().T + bias_O.double()
        got = torch.empty(200, outputs)
        packed.multiply(x_ND, got, bias_O, num_threads=3)
        assert (got.double() - wanted).abs().max().item() <= TOLERANCE["float32"] * inputs**0.5
        for rows in (1, 4, 7, 25, 97):
            part = torch.empty(rows, outputs)
            packed.multiply(x_ND[:rows], part, bias_O)
            assert torch.equal(part, got[:rows]), (rows, outputs, inputs)
