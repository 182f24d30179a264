"""Row operations of every registry: each candidate refuses or matches the reference; compiled ones are bit-stable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from octavo.cache.pool import KVPool
from octavo.core.kvspec import BLOCK_SIZE, KV_DTYPE_BYTES, KVGroup, KVSpec
from octavo.kernels import ops
from octavo.kernels.cpu import extension
from octavo.kernels.cpu import rows as cpu_rows
from octavo.kernels.dispatch import OpCase
from octavo.kernels.kv import KVTensors, quantize
from octavo.kernels.ops import QkNorm
from octavo.kernels.registry import (
    ACTIVATE,
    ACTIVATE_AND_MUL,
    ADD_LAYER_NORM,
    ADD_RMS_NORM,
    ATTENTION_INPUTS,
    LAYER_NORM,
    RMS_NORM,
    SILU_AND_MUL,
)

TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-2, "float16": 4e-3}
FEATURES = (1, 2, 8, 15, 16, 31, 64, 100, 1024)
ON_CPU = [kept for kept in KV_DTYPE_BYTES if kept != "float8_e4m3fn"]
"""What keys and values are kept in there: a start with fp8 is refused (E-CFG-13), and `tests/gpu` has that."""
ISAS = extension.runnable_isas()
REFERENCES: dict[str, Callable[..., Any]] = {
    "rms_norm": ops.rms_norm,
    "add_rms_norm": ops.add_rms_norm,
    "silu_and_mul": ops.silu_and_mul,
    "attention_inputs": ops.attention_inputs,
    "layer_norm": ops.layer_norm,
    "add_layer_norm": ops.add_layer_norm,
    "activate": ops.activate,
    "activate_and_mul": ops.activate_and_mul,
}
OPS = {
    op.name: op
    for op in (
        RMS_NORM,
        ADD_RMS_NORM,
        SILU_AND_MUL,
        ATTENTION_INPUTS,
        LAYER_NORM,
        ADD_LAYER_NORM,
        ACTIVATE,
        ACTIVATE_AND_MUL,
    )
}
CURVES = tuple(cpu_rows.CURVES)


def random(*shape: int, dtype: str = "float32", scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return (torch.randn(shape, generator=generator) * scale).to(getattr(torch, dtype))


def attention_arguments(
    tokens: int,
    heads: int,
    kv_heads: int,
    dim: int,
    *,
    rotated: int,
    dtype: str,
    kept: str,
    has_norm: bool,
) -> tuple[Any, ...]:
    angles = random(tokens, rotated // 2, scale=3.0)
    norms = QkNorm(random(dim, dtype=dtype), random(1 + dim, dtype=dtype)[1:].clone(), 1e-5)
    blocks = -(-tokens // BLOCK_SIZE) + 2
    spec = KVSpec(num_kv_heads=kv_heads, head_dim=dim, dtype=kept)
    group = KVGroup(spec=spec, layers=(0,), num_blocks=blocks)
    cache = KVPool((group,), 1, torch.device("cpu")).layer(0)
    slots = torch.randperm((blocks - 1) * BLOCK_SIZE, generator=torch.Generator().manual_seed(3))
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    slots = slots[:tokens] + BLOCK_SIZE
    return qkv, norms if has_norm else None, (angles.cos(), angles.sin()), slots, cache


def layer_norm_cases(name: str, rows: int, size: int, dtype: str) -> list[Any]:
    weight, bias = random(size, dtype=dtype), random(1 + size, dtype=dtype)[1:].clone()
    found: list[Any] = []
    for given in (bias, None):
        if name == "layer_norm":
            found.append(lambda b=given: (random(rows, size, dtype=dtype) + 1, weight, b, 1e-6))
        else:
            found.append(
                lambda b=given: (
                    random(rows, size, dtype=dtype),
                    random(rows, size, dtype=dtype, scale=2.0),
                    weight,
                    b,
                    1e-6,
                )
            )
    return found


def cases(name: str, dtype: str) -> list[Callable[[], tuple[Any, ...]]]:
    """Makers of arguments: operations may write over theirs."""
    found: list[Callable[[], tuple[Any, ...]]] = []
    if name == "attention_inputs":
        for tokens, shape in (
            (0, (2, 1, 8)),
            (1, (4, 2, 64)),
            (40, (6, 1, 20)),
            (70, (16, 8, 128)),
        ):
            for rotated, has_norm in ((shape[2], True), (shape[2] // 2, False), (shape[2], False)):
                for kept in ON_CPU:
                    found.append(
                        lambda t=tokens, s=shape, r=rotated, n=has_norm, k=kept: (
                            attention_arguments(t, *s, rotated=r, dtype=dtype, kept=k, has_norm=n)
                        )
                    )
        return found
    for rows in (0, 1, 3, 90):
        for size in FEATURES:
            weight = random(size, dtype=dtype)
            if name.endswith("layer_norm"):
                found += layer_norm_cases(name, rows, size, dtype)
            elif name.startswith("activate"):
                wide = 2 * size if name.endswith("mul") else size
                found += [
                    lambda r=rows, w=wide, c=curve: (random(r, w, dtype=dtype, scale=3.0), c)
                    for curve in CURVES
                ]
            elif name == "rms_norm":
                found.append(lambda r=rows, s=size, w=weight: (random(r, s, dtype=dtype), w, 1e-6))
            elif name == "add_rms_norm":
                found.append(
                    lambda r=rows, s=size, w=weight: (
                        random(r, s, dtype=dtype),
                        random(r, s, dtype=dtype, scale=2.0),
                        w,
                        1e-6,
                    )
                )
            else:
                found.append(lambda r=rows, s=size: (random(r, 2 * s, dtype=dtype, scale=4.0),))
    return found


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for item in value for each in tensors(item)] if isinstance(value, tuple) else []


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("op", "name"), [(op, name) for op in OPS for name in OPS[op].candidates])
def test_refuses_or_matches(op: str, name: str, dtype: str) -> None:
    candidate = OPS[op].candidates.load(name)
    case = OpCase(device="cpu", dtype=dtype)
    reason = candidate.refuses(case)
    if reason is not None:
        assert len(reason) > 10
        return
    for make in cases(op, dtype):
        ours, theirs = make(), make()
        got, wanted = tensors(candidate(case)(*ours)), tensors(REFERENCES[op](*theirs))
        if op == "attention_inputs":
            got, wanted = got + list(ours[-1].tensors()), wanted + list(theirs[-1].tensors())
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            if one.dtype is torch.int8:  # a sum in another order may round the other way
                assert (one.int() - other.int()).abs().max() <= (1 if dtype == "float32" else 4)
                continue
            limit = max(TOLERANCE[dtype], TOLERANCE[str(one.dtype).removeprefix("torch.")])
            torch.testing.assert_close(one, other, atol=limit, rtol=limit)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(isa: str) -> None:
    for size in FEATURES:
        x, residual, weight = random(300, size), random(300, size, scale=2.0), random(size)
        results = []
        for forced, threads in (("scalar", 1), (isa, 3)):
            out, total = torch.empty(300, size), residual.clone()
            cpu_rows.rms_norm(
                x, weight, out, 1e-6, residual_ND=total, isa=forced, num_threads=threads
            )
            gated = torch.empty(300, size)
            both = torch.cat((x, residual), 1)
            cpu_rows.silu_and_mul(both, gated, isa=forced, num_threads=threads)
            found = [out, total, gated]
            for bias in (None, weight):
                normed, total = torch.empty(300, size), residual.clone()
                options = {"residual_ND": total, "isa": forced, "num_threads": threads}
                cpu_rows.layer_norm(x, weight, bias, normed, 1e-6, **options)
                found += [normed, total]
            for curve in CURVES:
                curved, product = torch.empty(300, size), torch.empty(300, size)
                cpu_rows.activate(x, curved, curve, isa=forced, num_threads=threads)
                options = {"is_gated": True, "isa": forced, "num_threads": threads}
                cpu_rows.activate(both, product, curve, **options)
                found += [curved, product]
            results.append(found)
        assert all(map(torch.equal, *results)), size
    for make in cases("attention_inputs", "float32"):
        queries = []
        for forced, threads in (("scalar", 1), (isa, 3)):
            qkv, norms, angles, slots, cache = make()
            kv_heads, dim = cache.k.shape[2:]
            q = torch.empty(qkv.shape[0], qkv.shape[1] // dim - 2 * kv_heads, dim)
            options = {"isa": forced, "num_threads": threads}
            cpu_rows.attention_inputs(qkv, norms, angles, slots, cache, q, **options)
            queries.append((q, *cache.tensors()))
        assert all(map(torch.equal, *queries))


def test_what_is_stored_is_rounded_as_torch_rounds() -> None:
    """Every float16 and bfloat16 case: subnormals, ties, overflow, NaN; and the ends of int8."""
    patterns = torch.randint(-(2**31), 2**31, (64, 64), generator=torch.Generator().manual_seed(1))
    values = patterns.to(torch.int32).view(torch.float32).clone()
    values[:16] = torch.arange(-512, 512).view(16, 64) * 2.0**-26  # around float16's subnormals
    values[16, :6] = torch.tensor([65519.0, 65520.0, -65520.0, 65504.0, 0.0, -0.0])
    angles = (torch.ones(64, 0), torch.zeros(64, 0))
    slots, q = torch.arange(64), torch.empty(64, 1, 64)
    for dtype in (torch.float16, torch.bfloat16):
        for isa in ISAS:
            cache = KVTensors(*(torch.zeros(4, BLOCK_SIZE, 1, 64, dtype=dtype) for _ in "kv"))
            qkv = torch.cat((values, values, values), 1)
            cpu_rows.attention_inputs(qkv, None, angles, slots, cache, q, isa=isa)
            for kept in (cache.k, cache.v):
                torch.testing.assert_close(
                    kept.view(64, 64), values.to(dtype), rtol=0, atol=0, equal_nan=True
                )
    integers, scales = quantize(torch.tensor([[[0.0, 0.0], [-3.0, 1.5], [1e-30, 2.0]]]))
    assert integers.tolist() == [[[0, 0], [-127, 64], [0, 127]]]
    torch.testing.assert_close(scales, torch.tensor([[0.0, 3 / 127, 2 / 127]]))


def test_silu_at_the_ends() -> None:
    x = torch.tensor([[-1e4, -200.0, -88.0, -1e-8, 0.0, 1e-8, 88.0, 200.0, 1e30, float("nan")]])
    out = torch.empty_like(x)
    cpu_rows.silu_and_mul(torch.cat((x, torch.ones_like(x)), 1), out)
    torch.testing.assert_close(
        out, torch.nn.functional.silu(x), equal_nan=True, rtol=1e-6, atol=1e-30
    )


def test_curves_at_the_ends() -> None:
    x = torch.tensor([[-1e4, -20.0, -8.0, -1e-8, 0.0, 1e-8, 8.0, 20.0, 1e15, float("nan")]])
    for curve in CURVES:
        out = torch.empty_like(x)
        cpu_rows.activate(x, out, curve)
        expected = ops.activate(x, curve)  # type: ignore[arg-type]  # the names are the same
        torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-6, atol=3e-7)


def test_wrong_tensors_are_refused() -> None:
    x = random(2, 8)
    with pytest.raises(
        ValueError, match=r"weight: expected torch.float32 \[8\].*given torch.float32 \[7\]"
    ):
        cpu_rows.rms_norm(x, random(7), torch.empty(2, 8), 1e-6)
    with pytest.raises(ValueError, match="out: expected"):
        cpu_rows.rms_norm(x, random(8), torch.empty(2, 8, dtype=torch.float64), 1e-6)
    with pytest.raises(ValueError, match="contiguous"):
        cpu_rows.silu_and_mul(random(8, 2).T, torch.empty(2, 4))
