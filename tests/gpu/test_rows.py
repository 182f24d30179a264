"""Row operations by Triton against their references in `kernels/ops.py`: odd sizes, empty inputs, rows with gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gpu_cases import DEVICE, DTYPES, ROW_TOLERANCE, random
from octavo.core.kvspec import BLOCK_SIZE
from octavo.kernels import ops
from octavo.kernels.dispatch import OpCase
from octavo.kernels.kv import LARGEST, KVTensors
from octavo.kernels.ops import QkNorm
from octavo.kernels.registry import (
    ACTIVATE,
    ACTIVATE_AND_MUL,
    ADD_LAYER_NORM,
    ADD_RMS_NORM,
    ATTENTION_INPUTS,
    EMBEDDING,
    LAYER_NORM,
    RMS_NORM,
    SILU_AND_MUL,
)

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
"""numpy says so in the interpreter; the infinity is meant."""

SIZES = (1, 15, 64, 1100)
ROWS = (0, 1, 3)


def ours(op: Any, dtype: str, size: int = 0) -> Callable[..., Any]:
    candidate = op.candidates.load("triton")
    case = OpCase(device=DEVICE, dtype=dtype, sizes=(size,))
    assert candidate.refuses(case) is None
    found: Callable[..., Any] = candidate(case)
    return found


def compare(got: Any, wanted: Any, dtype: str) -> None:
    for one, other in zip(
        *(x if isinstance(x, tuple) else (x,) for x in (got, wanted)), strict=True
    ):
        assert one.dtype == other.dtype and one.shape == other.shape
        limit = ROW_TOLERANCE[dtype]
        torch.testing.assert_close(one, other, atol=limit, rtol=limit, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_norms(dtype: str) -> None:
    for rows in ROWS:
        for size in SIZES:
            x, weight = random(rows, size, dtype=dtype) + 1, random(size, dtype=dtype)
            residual, bias = (
                random(rows, size, dtype=dtype, seed=1),
                random(size, dtype=dtype, seed=2),
            )
            compare(ours(RMS_NORM, dtype)(x, weight, 1e-6), ops.rms_norm(x, weight, 1e-6), dtype)
            got = ours(ADD_RMS_NORM, dtype)(x.clone(), residual.clone(), weight, 1e-6)
            compare(got, ops.add_rms_norm(x, residual, weight, 1e-6), dtype)
            for given in (bias, None):
                wanted = ops.layer_norm(x, weight, given, 1e-5)
                compare(ours(LAYER_NORM, dtype)(x, weight, given, 1e-5), wanted, dtype)
                got = ours(ADD_LAYER_NORM, dtype)(x.clone(), residual.clone(), weight, given, 1e-5)
                compare(got, ops.add_layer_norm(x, residual, weight, given, 1e-5), dtype)


@torch.inference_mode()
def test_norms_of_rows_with_gaps_and_of_heads() -> None:
    wide, weight = random(5, 96), random(32)
    compare(
        ours(RMS_NORM, "float32")(wide[:, 32:64], weight, 1e-6),
        ops.rms_norm(wide[:, 32:64], weight, 1e-6),
        "float32",
    )
    heads = wide.view(5, 3, 32)
    compare(
        ours(RMS_NORM, "float32")(heads, weight, 1e-6), ops.rms_norm(heads, weight, 1e-6), "float32"
    )


@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_activations(dtype: str) -> None:
    for rows in ROWS:
        for size in SIZES:
            x = random(rows, 2 * size, dtype=dtype, scale=3.0)
            compare(ours(SILU_AND_MUL, dtype)(x), ops.silu_and_mul(x), dtype)
            # In float64: torch's erf of float32 is off by 1e-6 where it has AVX-512, 0.4e-6 elsewhere.
            exact = x.double() if dtype == "float32" else x
            for curve in ("gelu", "gelu_tanh", "relu"):
                wanted = ops.activate_and_mul(exact, curve).to(x.dtype)
                compare(ours(ACTIVATE_AND_MUL, dtype)(x, curve), wanted, dtype)
                wanted = ops.activate(exact, curve).to(x.dtype)
                compare(ours(ACTIVATE, dtype)(x.clone(), curve), wanted, dtype)


@torch.inference_mode()
def test_activations_at_the_ends() -> None:
    ends = torch.tensor([[-1e4, -90.0, -8.0, -1e-8, 0.0, 1e-8, 8.0, 90.0, 1e10, float("nan")]])
    x = ends.to(DEVICE)
    compare(
        ours(SILU_AND_MUL, "float32")(torch.cat((x, torch.ones_like(x)), 1)),
        torch.nn.functional.silu(x),
        "float32",
    )
    for curve in ("gelu", "gelu_tanh", "relu"):
        compare(ours(ACTIVATE, "float32")(x.clone(), curve), ops.activate(x, curve), "float32")  # type: ignore[arg-type]


@torch.inference_mode()
def test_embedding() -> None:
    for dtype in DTYPES:
        for size in SIZES:
            table = random(7, size, dtype=dtype)
            for ids in ([], [6, 0, 3, 3]):
                ids_T = torch.tensor(ids, dtype=torch.int64, device=DEVICE)
                got, wanted = ours(EMBEDDING, dtype)(ids_T, table), ops.embedding(ids_T, table)
                assert torch.equal(got, wanted)


def caches(kv_heads: int, dim: int, kept: torch.dtype) -> KVTensors:
    shape = (4, BLOCK_SIZE, kv_heads, dim)
    values = [torch.zeros(shape, dtype=kept, device=DEVICE) for _ in "kv"]
    if kept not in LARGEST:
        return KVTensors(*values)
    return KVTensors(*values, *(torch.zeros(shape[:3], device=DEVICE) for _ in "kv"))


@pytest.mark.parametrize("kept", ["same", "int8", "float8_e4m3fn"])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_attention_inputs(dtype: str, kept: str) -> None:
    kept_dtype = getattr(torch, dtype if kept == "same" else kept)
    for tokens, heads, kv_heads, dim in ((0, 2, 1, 8), (1, 4, 2, 64), (9, 3, 1, 20)):
        for rotated, has_norm in ((dim, True), (dim // 2, False), (0, True)):
            angles = random(tokens, rotated // 2, scale=3.0)
            norms = QkNorm(random(dim, dtype=dtype), random(dim, dtype=dtype, seed=1), 1e-5)
            qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype, scale=9.0)
            slots = torch.randperm(3 * BLOCK_SIZE, generator=torch.Generator().manual_seed(3))[
                :tokens
            ]
            arguments = (
                qkv,
                norms if has_norm else None,
                (angles.cos(), angles.sin()),
                (slots + BLOCK_SIZE).to(DEVICE),
            )
            mine, theirs = caches(kv_heads, dim, kept_dtype), caches(kv_heads, dim, kept_dtype)
            got = ours(ATTENTION_INPUTS, dtype)(*arguments, mine)
            compare(got, ops.attention_inputs(*arguments, theirs), dtype)
            for one, other in zip(mine.tensors(), theirs.tensors(), strict=True):
                if one.dtype is torch.int8:  # what lies between two integers may go either way
                    assert (one.int() - other.int()).abs().max() <= (1 if dtype == "float32" else 4)
                elif (
                    one.dtype is torch.float8_e4m3fn
                ):  # the next one, with three bits behind the point; roundings before it are of the largest, 448
                    atol = {"float32": 2**-9, "float16": 448 * 2**-10, "bfloat16": 448 * 2**-7}
                    torch.testing.assert_close(
                        one.float(), other.float(), rtol=0.13, atol=atol[dtype]
                    )
                else:
                    compare(one, other, dtype)
