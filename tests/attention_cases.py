"""Steps, caches and cases of attention, made alike for every backend's tests."""

from __future__ import annotations

import random

import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.kv import LARGEST, KVTensors, quantize

TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 3e-3}
"""Per unit of max(1, |value|): a few roundings of the dtype (2^-24, 2^-8, 2^-11)."""


def make(
    slices: tuple[tuple[int, int], ...], spec: KVSpec, *, adjacent: bool = False
) -> tuple[ForwardBatch, int]:
    """A batch whose blocks are shuffled (or adjacent), and the number of blocks. Passed windows have block 0."""
    per_slice = [-(-length // BLOCK_SIZE) for _, length in slices]
    ids = list(range(1, 1 + sum(per_slice)))
    if not adjacent:
        random.Random(3).shuffle(ids)
    tables_SB = torch.zeros(len(slices), max(per_slice), dtype=torch.int32)
    starts, positions, slots = [0], [], []
    for i, (count, length) in enumerate(slices):
        blocks = [ids.pop(0) for _ in range(per_slice[i])]
        own = range(length - count, length)
        positions += own
        slots += [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in own]
        starts.append(starts[-1] + count)
        if spec.window is not None:
            passed = max(0, length - max(count, 1) - spec.window + 1) // BLOCK_SIZE
            blocks[:passed] = [0] * passed
        tables_SB[i, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
    batch = ForwardBatch(
        token_ids_T=torch.zeros(len(positions), dtype=torch.int64),
        positions_T=torch.tensor(positions),
        query_starts=tuple(starts),
        context_lens=tuple(length for _, length in slices),
        groups=(GroupBatch(slots_T=torch.tensor(slots), block_tables_SB=tables_SB),),
        logits_rows_N=torch.zeros(0, dtype=torch.int64),
    )
    return batch, 1 + sum(per_slice)


def make_tensors(
    case: AttentionCase, batch: ForwardBatch, num_blocks: int
) -> tuple[torch.Tensor, KVTensors]:
    """Random queries and cache; slots past each context hold huge values that no output may show."""
    generator = torch.Generator().manual_seed(5)
    q_THD = torch.randn(batch.num_tokens, case.num_heads, case.head_dim, generator=generator).to(
        getattr(torch, case.dtype)
    )
    shape = (num_blocks, BLOCK_SIZE, case.num_kv_heads, case.head_dim)
    values = [torch.randn(shape, generator=generator) for _ in "kv"]
    for table_B, length in zip(batch.groups[0].block_tables_SB, batch.context_lens, strict=True):
        tail = length % BLOCK_SIZE
        if tail:
            for tensor in values:
                tensor[int(table_B[length // BLOCK_SIZE]), tail:] = 3e4
    dtype = getattr(torch, case.cache_dtype)
    if dtype not in LARGEST:
        return q_THD, KVTensors(*(value.to(dtype) for value in values))
    (k, k_scales), (v, v_scales) = (quantize(tensor.flatten(0, 1), dtype) for tensor in values)
    return q_THD, KVTensors(
        k.view(shape), v.view(shape), k_scales.view(shape[:3]), v_scales.view(shape[:3])
    )


def make_case(
    heads: tuple[int, int, int],
    dtype: str,
    window: int | None,
    soft_cap: float | None,
    cache_dtype: str | None = None,
) -> tuple[AttentionCase, KVSpec]:
    num_heads, num_kv_heads, head_dim = heads
    case = AttentionCase(
        device="cpu",
        dtype=dtype,
        cache_dtype=cache_dtype or dtype,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        scale=1.7 * head_dim**-0.5,
        window=window,
        soft_cap=soft_cap,
    )
    kind = "full" if window is None else "window"
    spec = KVSpec(
        kind=kind,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=case.cache_dtype,
        window=window,
    )
    return case, spec
