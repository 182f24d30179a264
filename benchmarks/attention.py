"""Every attention backend that takes the case, on one layer of a shape, beside each other and a bandwidth ceiling.

    python benchmarks/attention.py --dtype float32 --threads 2 --json benchmarks/results/attention.json
    python benchmarks/attention.py --kv-cache-dtype bfloat16 --round-products --json benchmarks/results/attention-bfloat16.json

A round runs each backend once, in alternating order; numbers are medians. A decode must at least read every key and
value once: the column `GB/s` is those bytes over the time, and the last line is what a plain sum over as many bytes
as the largest case reaches in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from octavo.cache.pool import KVPool
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVGroup, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.cpu import extension
from octavo.kernels.kv import KVTensors
from octavo.kernels.ops import kv_store
from octavo.tools.bench.environment import environment
from octavo.tools.tables import table

STEPS = {
    "1 decode at 256": [(1, 256)],
    "1 decode at 4096": [(1, 4096)],
    "16 decodes at 256": [(1, 256)] * 16,
    "16 decodes at 4096": [(1, 4096)] * 16,
    "chunk of 512 at 2048": [(512, 2048)],
    "prompt of 256": [(256, 256)],
    "prompt of 4096": [(4096, 4096)],
    "128 + 16 decodes at 1024": [(128, 1024)] + [(1, 1024)] * 16,
}
"""Name -> slices as (tokens, context)."""
SLOW = "reference"


def make_batch(slices: list[tuple[int, int]]) -> tuple[ForwardBatch, int]:
    """A step over shuffled blocks, and how many blocks there are."""
    needs = [-(-context // BLOCK_SIZE) for _, context in slices]
    order = torch.randperm(sum(needs), generator=torch.Generator().manual_seed(0)) + 1
    tables_SB = torch.zeros(len(slices), max(needs), dtype=torch.int32)
    for row, part in enumerate(torch.split(order.to(torch.int32), needs)):
        tables_SB[row, : len(part)] = part
    starts = [0]
    for count, _ in slices:
        starts.append(starts[-1] + count)
    nothing = torch.zeros(starts[-1], dtype=torch.int64)
    batch = ForwardBatch(
        token_ids_T=nothing,
        positions_T=nothing,
        query_starts=tuple(starts),
        context_lens=tuple(context for _, context in slices),
        groups=(GroupBatch(slots_T=nothing, block_tables_SB=tables_SB),),
        logits_rows_N=nothing[:0],
    )
    return batch, 1 + sum(needs)


def make_cache(num_blocks: int, case: AttentionCase) -> KVTensors:
    """Random keys and values where an engine keeps them: a pool's pages are as large as the system gives."""
    spec = KVSpec(num_kv_heads=case.num_kv_heads, head_dim=case.head_dim, dtype=case.cache_dtype)
    group = KVGroup(spec=spec, layers=(0,), num_blocks=num_blocks)
    cache = KVPool((group,), 1, torch.device("cpu")).layer(0)
    slots_T = torch.arange(num_blocks * BLOCK_SIZE)
    k_THD, v_THD = (torch.randn(len(slots_T), case.num_kv_heads, case.head_dim) for _ in "kv")
    kv_store(k_THD, v_THD, cache, slots_T)
    return cache


def backends(case: AttentionCase) -> dict[str, Any]:
    """Name -> backend, of those that take the case; the reference only shows what is right."""
    found = {}
    for name in ATTENTION.candidates:
        candidate = ATTENTION.candidates.load(name)
        if candidate.refuses(case) is None:
            found[name] = candidate(case)
    return found


def measure(case: AttentionCase, slices: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    """Seconds per layer of each backend, the plan's share included; outputs are compared first."""
    batch, num_blocks = make_batch(slices)
    spec = KVSpec(num_kv_heads=case.num_kv_heads, head_dim=case.head_dim, dtype=case.cache_dtype)
    dtype = getattr(torch, case.dtype)
    q_THD = torch.randn(batch.num_tokens, case.num_heads, case.head_dim).to(dtype)
    cache = make_cache(num_blocks, case)
    there = backends(case)
    wanted = there[SLOW].run(q_THD, cache, there[SLOW].plan(batch, 0, spec))
    runs: dict[str, Callable[[], Any]] = {}
    for name, backend in there.items():
        if name != SLOW:
            plan = backend.plan(batch, 0, spec)
            got = backend.run(q_THD, cache, plan)
            torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
            runs[name] = lambda backend=backend, plan=plan: backend.run(q_THD, cache, plan)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-2, rounds):
        for name in list(runs) if turn % 2 else reversed(list(runs)):
            begun = time.perf_counter()
            runs[name]()
            if turn >= 0:
                seconds[name].append(time.perf_counter() - begun)
    size = sum(context for _, context in slices) * spec.bytes_per_token
    return {"seconds": seconds, "kv_bytes": size}


def ceiling(num_bytes: int) -> float:
    """GB/s of a sum over so many bytes of float32, best of five."""
    values = torch.ones(num_bytes // 4)
    best = 0.0
    for _ in range(5):
        begun = time.perf_counter()
        values.sum()
        best = max(best, num_bytes / (time.perf_counter() - begun) / 1e9)
    return best


def main() -> None:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, nargs=3, default=[16, 8, 128], metavar=("H", "G", "D"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--round-products", action="store_true", help="with a CPU's own bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    extension.set_num_threads(args.threads)
    extension.round_products(args.round_products)
    heads, kv_heads, head_dim = args.heads
    case = AttentionCase(
        device="cpu",
        dtype=args.dtype,
        cache_dtype=args.dtype if args.kv_cache_dtype == "auto" else args.kv_cache_dtype,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        scale=head_dim**-0.5,
    )
    with torch.inference_mode():
        results = {name: measure(case, slices, args.rounds) for name, slices in STEPS.items()}
        limit = ceiling(max(result["kv_bytes"] for result in results.values()))
    lines = []
    for name, result in results.items():
        for backend, values in result["seconds"].items():
            middle = statistics.median(values)
            spread = f"{min(values) * 1e6:.0f} to {max(values) * 1e6:.0f}"
            rate = f"{result['kv_bytes'] / middle / 1e9:.1f}"
            lines.append([name, backend, f"{middle * 1e6:.0f}", spread, rate])
    print(table(("step", "backend", "us per layer", "spread", "GB/s"), lines))
    print(f"a plain sum reads {limit:.1f} GB/s")
    if args.json:
        record = {
            "arguments": {k: str(v) for k, v in vars(args).items() if k != "json"},
            "environment": environment(),
            "results": results,
            "ceiling_gb_per_s": limit,
        }
        args.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
