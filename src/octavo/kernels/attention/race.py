"""Which of several attention backends is the fastest for a case on this device: each does the same two steps.

Their outputs are first compared with the reference: what is installed beside Octavo may be of any version, and one that
throws or computes something else must not be used, however fast it is.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionBackend, AttentionCase
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.kv import LARGEST, KVTensors, quantize

CUDA_STEPS = (((1, 1024),) * 32, ((512, 1024), (1, 700)))
"""Slices as (count, context): a step of decodes, and a chunk beside one. 130 MB of keys and values at eight heads of 128."""
SMALL_STEPS = (((1, 40),) * 3, ((20, 40), (1, 17)))
"""Elsewhere than on a GPU, where only tests come."""
TOLERANCE = 3e-2
"""Per unit of max(1, |value|): a few roundings of bfloat16."""
_ROUNDS = 10


@torch.inference_mode()
def race(case: AttentionCase, rivals: dict[str, AttentionBackend[Any]]) -> dict[str, float | str]:
    """Seconds of one layer in both steps together, of each rival; or why it must not be used."""
    steps = CUDA_STEPS if case.device == "cuda" else SMALL_STEPS
    found: dict[str, float | str] = dict.fromkeys(rivals, 0.0)
    for slices in steps:
        batch, q_THD, cache = _step(case, slices)
        reference = ReferenceAttention(case)
        spec = _spec(case)
        wanted_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
        for name, backend in rivals.items():
            if isinstance(found[name], str):
                continue
            try:
                plan = backend.plan(batch, 0, spec)
                off = _off(backend.run(q_THD, cache, plan), wanted_THD)
                if off <= TOLERANCE:
                    run = partial(backend.run, q_THD, cache, plan)
                    found[name] = float(found[name]) + _seconds(run)
                else:
                    found[name] = f"is off by {off:.2g} from the reference"
            except Exception as error:  # edge of a library: whatever it throws, others can compute
                found[name] = f"throws {type(error).__name__}: {error}"
    return found


def _off(out_THD: torch.Tensor, wanted_THD: torch.Tensor) -> float:
    error_THD = (out_THD.float() - wanted_THD).abs() / wanted_THD.abs().clamp(min=1)
    return float(error_THD.nan_to_num(nan=float("inf")).max())


def _seconds(run: Callable[[], object]) -> float:
    """Median of one run among several, less what the host needs to wait for it."""
    if not torch.cuda.is_available():
        begun = time.perf_counter()
        run()
        return time.perf_counter() - begun
    for _ in range(3):
        run()
    pairs = []
    for _ in range(_ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        run()
        end.record()
        pairs.append((begin, end))
    torch.cuda.synchronize()
    milliseconds: list[float] = [begin.elapsed_time(end) for begin, end in pairs]
    return statistics.median(milliseconds) / 1e3


def _spec(case: AttentionCase) -> KVSpec:
    return KVSpec(
        kind="full" if case.window is None else "window",
        num_kv_heads=case.num_kv_heads,
        head_dim=case.head_dim,
        dtype=case.cache_dtype,
        window=case.window,
    )


def _step(
    case: AttentionCase, slices: tuple[tuple[int, int], ...]
) -> tuple[ForwardBatch, torch.Tensor, KVTensors]:
    """Queries and a cache whose blocks are in no order, as a pool has them after a while."""
    device = torch.device(case.device)
    generator = torch.Generator().manual_seed(0)
    needs = [-(-context // BLOCK_SIZE) for _, context in slices]
    order = torch.randperm(sum(needs), generator=generator) + 1
    tables_SB = torch.zeros(len(slices), max(needs), dtype=torch.int32)
    for row, part in enumerate(torch.split(order.to(torch.int32), needs)):
        tables_SB[row, : len(part)] = part
    starts = [0]
    for count, _ in slices:
        starts.append(starts[-1] + count)
    nothing_T = torch.zeros(starts[-1], dtype=torch.int64, device=device)
    batch = ForwardBatch(
        token_ids_T=nothing_T,
        positions_T=nothing_T,
        query_starts=tuple(starts),
        context_lens=tuple(context for _, context in slices),
        groups=(GroupBatch(slots_T=nothing_T, block_tables_SB=tables_SB.to(device)),),
        logits_rows_N=nothing_T[:0],
    )
    shape = (1 + sum(needs), BLOCK_SIZE, case.num_kv_heads, case.head_dim)
    values = [torch.randn(shape, generator=generator) for _ in "kv"]
    q_THD = torch.randn(starts[-1], case.num_heads, case.head_dim, generator=generator)
    q_THD = q_THD.to(getattr(torch, case.dtype)).to(device)
    dtype = getattr(torch, case.cache_dtype)
    if dtype not in LARGEST:
        return batch, q_THD, KVTensors(*(each.to(device, dtype) for each in values))
    parts = [quantize(each.flatten(0, 1), dtype) for each in values]
    k, v = (levels.view(shape).to(device) for levels, _ in parts)
    return batch, q_THD, KVTensors(k, v, *(s.view(shape[:3]).to(device) for _, s in parts))
