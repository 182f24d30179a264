"""What a cache of 8 bits costs in exactness: the bounds that the docs state, of values and of attention over them."""

from __future__ import annotations

import pytest
import torch

from attention_cases import make, make_case, make_tensors
from octavo.core.kvspec import BLOCK_SIZE
from octavo.kernels import ops
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.kv import LARGEST, KVTensors, gather, quantize

FP8 = torch.float8_e4m3fn
SHARE = {torch.int8: (1 / 254, 0.0), FP8: (2.0**-10 / 448, 1 / 16)}
"""Of the largest value of a token's head, and of the value itself, that a kept value may be off by; the larger counts."""
SLACK = 1 + 2**-20


def bound(x_TGD: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    of_largest, of_value = SHARE[dtype]
    return SLACK * torch.maximum(
        of_largest * x_TGD.abs().amax(-1, keepdim=True), of_value * x_TGD.abs()
    )


@pytest.mark.parametrize("dtype", LARGEST)
def test_a_kept_value_is_off_by_no_more_than_stated(dtype: torch.dtype) -> None:
    x_TGD = torch.randn(300, 2, 64, generator=torch.Generator().manual_seed(1))
    x_TGD *= torch.logspace(-30, 30, 300)[:, None, None]
    x_TGD[0], x_TGD[1, :, 1:] = 0.0, 0.0
    x_TGD[2] = torch.linspace(-448, 448, 64)
    levels_TGD, scales_TG = quantize(x_TGD, dtype)
    off_TGD = (levels_TGD.float() * scales_TG.unsqueeze(-1) - x_TGD).abs()
    assert (off_TGD <= bound(x_TGD, dtype)).all()
    assert levels_TGD.float().abs().max() == LARGEST[dtype]
    assert not levels_TGD[0].float().any()


def test_numbers_that_e4m3_cannot_scale_are_zero() -> None:
    levels, scales = quantize(torch.full((1, 1, 8), 1e-42), FP8)
    assert not levels.float().any() and not scales.any()


@pytest.mark.parametrize("dtype", LARGEST)
@torch.inference_mode()
def test_attention_is_off_by_no_more_than_its_keys_and_values(dtype: torch.dtype) -> None:
    """Scores are off by at most `shift`, so that weights change by at most exp(2 shift); values by their own bound."""
    case, spec = make_case((4, 2, 64), "float32", None, None)
    batch, num_blocks = make(((1, 90), (7, 40)), spec)
    q_THD, exact = make_tensors(case, batch, num_blocks)
    exact = KVTensors(*(tensor.clamp(-6, 6) for tensor in exact.tensors()))
    kept = KVTensors(
        torch.zeros_like(exact.k, dtype=dtype),
        torch.zeros_like(exact.v, dtype=dtype),
        torch.zeros(exact.k.shape[:3]),
        torch.zeros(exact.k.shape[:3]),
    )
    slots = torch.arange(num_blocks * BLOCK_SIZE)
    ops.kv_store(exact.k.flatten(0, 1), exact.v.flatten(0, 1), kept, slots)
    backend = ReferenceAttention(case)
    plan = backend.plan(batch, 0, spec)
    off_THD = (backend.run(q_THD, kept, plan) - backend.run(q_THD, exact, plan)).abs()
    for piece in plan:
        k_LGD = gather(exact.k, None, piece.slots_L)
        v_LGD = gather(exact.v, None, piece.slots_L)
        q_QHD = q_THD[piece.start : piece.end].abs()
        off_LHD = bound(k_LGD, dtype).repeat_interleave(2, 1)
        shift = case.scale * torch.einsum("qhd,lhd->qhl", q_QHD, off_LHD).max()
        limit = (torch.exp(2 * shift) - 1) * v_LGD.abs().max() + bound(v_LGD, dtype).max()
        assert off_THD[piece.start : piece.end].max() <= limit
    # What is typical is far less than what is possible.
    assert off_THD.square().mean().sqrt() < {torch.int8: 0.005, FP8: 0.02}[dtype]
