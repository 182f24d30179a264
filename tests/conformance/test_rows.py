"""Row operations of every registry: each candidate refuses or matches the reference; compiled ones are bit-stable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from octavo.core.kvspec import BLOCK_SIZE
from octavo.kernels import ops
from octavo.kernels.cpu import extension
from octavo.kernels.cpu import rows as cpu_rows
from octavo.kernels.dispatch import OpCase
from octavo.kernels.ops import QkNorm
from octavo.kernels.registry import ADD_RMS_NORM, ATTENTION_INPUTS, RMS_NORM, SILU_AND_MUL

TOLERANCE = {"float32": 3e-6, "bfloat16": 4e-2, "float16": 4e-3}
FEATURES = (1, 2, 8, 15, 16, 31, 64, 100, 1024)
ISAS = extension.runnable_isas()
REFERENCES: dict[str, Callable[..., Any]] = {
    "rms_norm": ops.rms_norm,
    "add_rms_norm": ops.add_rms_norm,
    "silu_and_mul": ops.silu_and_mul,
    "attention_inputs": ops.attention_inputs,
}
OPS = {op.name: op for op in (RMS_NORM, ADD_RMS_NORM, SILU_AND_MUL, ATTENTION_INPUTS)}


def random(*shape: int, dtype: str = "float32", scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + len(shape))
    return (torch.randn(shape, generator=generator) * scale).to(getattr(torch, dtype))


def attention_arguments(
    tokens: int, heads: int, kv_heads: int, dim: int, *, rotated: int, dtype: str, has_norm: bool
) -> tuple[Any, ...]:
    angles = random(tokens, rotated // 2, scale=3.0)
    norms = QkNorm(random(dim, dtype=dtype), random(1 + dim, dtype=dtype)[1:].clone(), 1e-5)
    blocks = -(-tokens // BLOCK_SIZE) + 2
    cache = tuple(torch.zeros(blocks, BLOCK_SIZE, kv_heads, dim).to(norms[0]) for _ in "kv")
    slots = torch.randperm((blocks - 1) * BLOCK_SIZE, generator=torch.Generator().manual_seed(3))
    qkv = random(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    slots = slots[:tokens] + BLOCK_SIZE
    return qkv, norms if has_norm else None, (angles.cos(), angles.sin()), slots, cache


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
            for rotated in (shape[2], shape[2] // 2):
                for has_norm in (True, False):
                    found.append(
                        lambda t=tokens, s=shape, r=rotated, n=has_norm: attention_arguments(
                            t, *s, rotated=r, dtype=dtype, has_norm=n
                        )
                    )
        return found
    for rows in (0, 1, 3, 90):
        for size in FEATURES:
            weight = random(size, dtype=dtype)
            if name == "rms_norm":
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
            got, wanted = got + list(ours[-1]), wanted + list(theirs[-1])
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


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
            results.append((out, total, gated))
        assert all(map(torch.equal, *results)), size
    for make in cases("attention_inputs", "float32"):
        queries = []
        for forced, threads in (("scalar", 1), (isa, 3)):
            qkv, norms, angles, slots, cache = make()
            heads = qkv.shape[1] // cache[0].shape[3] - 2 * cache[0].shape[2]
            q = torch.empty(qkv.shape[0], heads, cache[0].shape[3])
            options = {"isa": forced, "num_threads": threads}
            cpu_rows.attention_inputs(qkv, norms, angles, slots, cache, q, **options)
            queries.append((q, *cache))
        assert all(map(torch.equal, *queries))


def test_silu_at_the_ends() -> None:
    x = torch.tensor([[-1e4, -200.0, -88.0, -1e-8, 0.0, 1e-8, 88.0, 200.0, 1e30, float("nan")]])
    out = torch.empty_like(x)
    cpu_rows.silu_and_mul(torch.cat((x, torch.ones_like(x)), 1), out)
    torch.testing.assert_close(
        out, torch.nn.functional.silu(x), equal_nan=True, rtol=1e-6, atol=1e-30
    )


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
