from __future__ import annotations

import pytest
import torch

from octavo.core.kvspec import BLOCK_SIZE
from octavo.kernels import ops
from octavo.kernels.kv import KVTensors

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("shape", [(1, 7), (5, 64), (3, 4, 16), (0, 8)])
def test_rms_norm(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = torch.randn(shape).to(dtype), torch.randn(shape[-1]).to(dtype)
    out = ops.rms_norm(x, weight, 1e-5)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_rms_norm_inner_is_wide() -> None:
    x = torch.full((1, 64), 300.0, dtype=torch.float16)
    out = ops.rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-5)
    torch.testing.assert_close(out, torch.ones_like(out))


def test_add_rms_norm_rounds_the_sum_first() -> None:
    x, residual, weight = (torch.randn(4, 32).bfloat16() for _ in range(3))
    normed, total = ops.add_rms_norm(x, residual, weight[0], 1e-5)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, ops.rms_norm(x + residual, weight[0], 1e-5))


@pytest.mark.parametrize("half", [4, 8])
def test_rope_is_a_rotation_of_pairs(half: int) -> None:
    q, k = torch.randn(5, 3, 16), torch.randn(5, 1, 16)
    angles = torch.randn(5, half)
    out_q, out_k = ops.rope(q, k, angles.cos(), angles.sin())
    for x, out in ((q, out_q), (k, out_k)):
        pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
        turned = pairs * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
        expected = torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1)
        torch.testing.assert_close(out, expected)


def test_silu_and_mul() -> None:
    x = torch.randn(3, 10)
    expected = x[:, :5] / (1 + torch.exp(-x[:, :5])) * x[:, 5:]
    torch.testing.assert_close(ops.silu_and_mul(x), expected)


def test_embedding_and_linear() -> None:
    table, ids = torch.randn(9, 4), torch.tensor([3, 3, 8])
    assert torch.equal(ops.embedding(ids, table), table[[3, 3, 8]])
    x, bias = torch.randn(2, 4), torch.randn(9)
    torch.testing.assert_close(ops.linear(x, table, bias), x @ table.T + bias)
    assert ops.linear(x[:0], table, None).shape == (0, 9)


def test_kv_store_writes_its_slots_alone() -> None:
    caches = [torch.zeros(3, BLOCK_SIZE, 2, 4) for _ in "kv"]
    # A view of a wider product, as the attention layer passes it.
    wide = torch.randn(3, 24)
    k, v = wide[:, 8:16].view(3, 2, 4), wide[:, 16:].view(3, 2, 4)
    ops.kv_store(k, v, KVTensors(*caches), torch.tensor([16, 47, 21]))
    for cache, new in zip(caches, (k, v), strict=True):
        flat = cache.view(-1, 2, 4)
        assert torch.equal(flat[[16, 47, 21]], new)
        flat[[16, 47, 21]] = 0
        assert not flat.any()
