"""Each Triton kernel on a card, beside torch's way and the ceilings measured in the same run.

    python benchmarks/gpu/kernels.py --json benchmarks/results/gpu-kernels.json
    python benchmarks/gpu/kernels.py --interpret      # tiny shapes on a CPU: that it runs; measures nothing

Attention of one layer of a shape (default that of Llama 3.1 8B) at several contexts and batches, and the row operations.
Each case is first compared with torch's result. `of ceiling` is the bytes that must be read and written, or the operations
that must be made, over the time, as a share of the faster of a copy and a sum, or of a large product. L2 is flushed before
each run. Sizes that do not fit into half of the free memory are left out, by name.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from card import Card
from results import Results

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.dispatch import Op, OpCase
from octavo.kernels.kv import KVTensors, quantize
from octavo.kernels.ops import QkNorm
from octavo.kernels.registry import (
    ADD_RMS_NORM,
    ATTENTION_INPUTS,
    EMBEDDING,
    RMS_NORM,
    SILU_AND_MUL,
)
from octavo.tools.tables import table

Slices = tuple[tuple[int, int], ...]
KERNEL, PEER = "triton", "torch"
TOLERANCE = 3e-2
FULL: dict[str, Slices] = {
    **{
        f"{batch} decodes at {context}": ((1, context),) * batch
        for batch in (1, 16, 64, 256)
        for context in (256, 1024, 4096, 16384, 65536)
        if batch * context <= 1 << 20
    },
    "1 decode at 131072": ((1, 131072),),
    "chunk of 512 at 512": ((512, 512),),
    "chunk of 2048 at 2048": ((2048, 2048),),
    "chunk of 8192 at 8192": ((8192, 8192),),
    "chunk of 512 at 32768": ((512, 32768),),
    "chunk of 1024 at 2048 + 64 decodes at 2048": ((1024, 2048),) + ((1, 2048),) * 64,
}
TINY: dict[str, Slices] = {"2 decodes at 300": ((1, 300),) * 2, "chunk of 20 at 40": ((20, 40),)}
CACHES = ("bfloat16", "int8", "float8_e4m3fn")


class Shape(NamedTuple):
    """Of a model."""

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    inner: int


class Work(NamedTuple):
    """One thing to time."""

    name: str
    variant: str
    run: Callable[[], Any]
    peer: Callable[[], Any] | None
    num_bytes: int
    num_flop: int


def make_batch(slices: Slices, device: torch.device) -> tuple[ForwardBatch, int]:
    """A step over shuffled blocks, and how many blocks there are."""
    needs = [-(-context // BLOCK_SIZE) for _, context in slices]
    order = torch.randperm(sum(needs), generator=torch.Generator().manual_seed(0)) + 1
    tables_SB = torch.zeros(len(slices), max(needs), dtype=torch.int32)
    for row, part in enumerate(torch.split(order.to(torch.int32), needs)):
        tables_SB[row, : len(part)] = part
    starts = [0]
    for count, _ in slices:
        starts.append(starts[-1] + count)
    nothing = torch.zeros(starts[-1], dtype=torch.int64, device=device)
    group = GroupBatch(slots_T=nothing, block_tables_SB=tables_SB.to(device))
    batch = ForwardBatch(
        token_ids_T=nothing,
        positions_T=nothing,
        query_starts=tuple(starts),
        context_lens=tuple(context for _, context in slices),
        groups=(group,),
        logits_rows_N=nothing[:0],
    )
    return batch, 1 + sum(needs)


def make_cache(num_blocks: int, shape: Shape, dtype: str, device: torch.device) -> KVTensors:
    """Random keys and values."""
    size = (num_blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim)
    kept = getattr(torch, dtype)
    if kept is not torch.int8:
        k, v = (torch.randn(size, device=device, dtype=torch.bfloat16).to(kept) for _ in "kv")
        return KVTensors(k, v)
    parts = [quantize(torch.randn(size, device=device).flatten(0, 1)) for _ in "kv"]
    k, v = (levels.view(size) for levels, _ in parts)
    return KVTensors(k, v, *(scales.view(size[:3]) for _, scales in parts))


def attention_work(name: str, slices: Slices, shape: Shape, cache_dtype: str, card: Card) -> Work:
    """One layer's attention, without what is planned once per step; torch's way where it reads such a cache."""
    batch, num_blocks = make_batch(slices, card.device)
    case = AttentionCase(
        device=card.device.type,
        dtype="bfloat16",
        cache_dtype=cache_dtype,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        scale=shape.head_dim**-0.5,
    )
    spec = KVSpec(num_kv_heads=shape.kv_heads, head_dim=shape.head_dim)
    q_THD = torch.randn(
        batch.num_tokens, shape.heads, shape.head_dim, device=card.device
    ).bfloat16()
    cache = make_cache(num_blocks, shape, cache_dtype, card.device)

    def runner(backend_name: str) -> Callable[[], Any]:
        candidate = ATTENTION.candidates.load(backend_name)
        reason = candidate.refuses(case)
        if reason is not None:
            raise SystemExit(f"{backend_name} refuses {name}: {reason}.")
        backend = candidate(case)
        plan = backend.plan(batch, 0, spec)
        return lambda: backend.run(q_THD, cache, plan)

    row_bytes = (
        2 * shape.kv_heads * (shape.head_dim * cache.k.itemsize + 4 * (cache_dtype == "int8"))
    )
    pairs = sum(count * (context - count) + count * (count + 1) // 2 for count, context in slices)
    tokens_bytes = sum(context for _, context in slices) * row_bytes
    peer = runner("torch_sdpa") if cache_dtype == "bfloat16" else runner("reference")
    return Work(
        f"attention, {name}",
        cache_dtype,
        runner(KERNEL),
        peer,
        tokens_bytes + 2 * q_THD.numel() * q_THD.itemsize,
        4 * pairs * shape.heads * shape.head_dim,
    )


def row_work(rows: int, shape: Shape, card: Card) -> Iterator[Work]:
    """The row operations over so many tokens."""

    def made(*size: int) -> torch.Tensor:
        return torch.randn(size, device=card.device).bfloat16()

    def pair(op: Op[OpCase, Any], *arguments: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        case = OpCase(device=card.device.type, dtype="bfloat16", sizes=(shape.hidden,))
        found = []
        for name in (KERNEL, PEER):
            candidate = op.candidates.load(name)
            reason = candidate.refuses(case)
            if reason is not None:
                raise SystemExit(f"{name} refuses {op.name}: {reason}.")
            run = candidate(case)
            found.append(lambda run=run: run(*arguments))
        return found[0], found[1]

    x, residual, weight = made(rows, shape.hidden), made(rows, shape.hidden), made(shape.hidden)
    size = x.numel() * 2
    yield Work("rms_norm", f"{rows} rows", *pair(RMS_NORM, x, weight, 1e-6), 2 * size, 0)
    # The kernel writes the sum over the residual, so that what it adds to grows from run to run; times do not.
    fused = pair(ADD_RMS_NORM, x, residual, weight, 1e-6)
    yield Work("add_rms_norm", f"{rows} rows", fused[0], None, 4 * size, 0)
    both = made(rows, 2 * shape.inner)
    yield Work(
        "silu_and_mul", f"{rows} rows", *pair(SILU_AND_MUL, both), 3 * rows * shape.inner * 2, 0
    )
    ids, words = torch.randint(0, 1000, (rows,), device=card.device), made(1000, shape.hidden)
    yield Work("embedding", f"{rows} rows", *pair(EMBEDDING, ids, words), 2 * size, 0)
    qkv = made(rows, (shape.heads + 2 * shape.kv_heads) * shape.head_dim)
    angles = torch.randn(rows, shape.head_dim // 2, device=card.device)
    cache = make_cache(-(-rows // BLOCK_SIZE) + 1, shape, "bfloat16", card.device)
    norms = QkNorm(made(shape.head_dim), made(shape.head_dim), 1e-6)
    slots = torch.arange(rows, device=card.device) + BLOCK_SIZE
    inputs = pair(ATTENTION_INPUTS, qkv, norms, (angles.cos(), angles.sin()), slots, cache)
    yield Work("attention_inputs", f"{rows} rows", *inputs, 2 * qkv.numel() * 2, 0)


def measure(work: Work, card: Card) -> dict[str, Any]:
    """Times, and the shares of nothing yet. Refuses to time what is wrong."""
    off = None
    if work.peer is not None:
        got, wanted = work.run().float(), work.peer().float()
        off = ((got - wanted).abs() / wanted.abs().clamp(min=1)).max().item()
        if not off <= TOLERANCE:
            raise SystemExit(f"{work.name}, {work.variant}: off by {off}, at most {TOLERANCE}.")
        del got, wanted
    timing = card.time(work.run)
    peer = None if work.peer is None else card.time(work.peer)
    return {
        "name": work.name,
        "variant": work.variant,
        "bytes": work.num_bytes,
        "flop": work.num_flop,
        "off_at_most": off,
        "seconds": timing._asdict(),
        "torch_seconds": peer and peer._asdict(),
    }


def add_shares(results: list[dict[str, Any]], ceilings: dict[str, float]) -> None:
    """Of the ceiling that binds: bytes or operations, whichever takes longer at its ceiling."""
    copy, read, flop = ceilings.values()
    for result in results:
        by_bytes, by_flop = result["bytes"] / max(copy, read), result["flop"] / flop
        result["bound_by"] = "bytes" if by_bytes >= by_flop else "operations"
        result["of_ceiling"] = max(by_bytes, by_flop) / result["seconds"]["median_s"]


def works(args: argparse.Namespace, shape: Shape, card: Card) -> Iterator[Work]:
    """All that fit, one at a time."""
    for name, slices in (TINY if card.is_dry else FULL).items():
        for cache_dtype in CACHES:
            need = 6 * sum(context for _, context in slices) * shape.kv_heads * shape.head_dim * 2
            if not card.is_dry and need > torch.cuda.mem_get_info()[0] // 2:
                print(f"left out for memory: {name}, {cache_dtype}")
            elif card.is_dry or cache_dtype == "bfloat16" or slices[0][0] == 1:
                yield attention_work(name, slices, shape, cache_dtype, card)
    for rows in (3,) if card.is_dry else (1, 16, 64, 256, 2048, 8192):
        yield from row_work(rows, shape, card)


def report(results: list[dict[str, Any]]) -> None:
    """One line per case."""
    lines = []
    for result in results:
        times = [result[key] for key in ("seconds", "torch_seconds")]
        cells = ["" if each is None else f"{each['median_s'] * 1e6:.1f}" for each in times]
        share = f"{result['of_ceiling']:.0%} of {result['bound_by']}"
        lines.append([result["name"], result["variant"], *cells, share])
    print(table(("what", "variant", "us", "torch us", "of ceiling"), lines))


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure and print; with --json, also write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interpret", action="store_true")
    parser.add_argument(
        "--shape",
        type=int,
        nargs=5,
        default=[32, 8, 128, 4096, 14336],
        metavar=("H", "G", "D", "HIDDEN", "INNER"),
    )
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.interpret:
        os.environ["TRITON_INTERPRET"] = "1"  # read when the first kernel is loaded
        args.shape = [4, 2, 16, 32, 48]
    elif not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --interpret only tries that this runs.")
    card, shape = Card(is_dry=args.interpret, rounds=args.rounds), Shape(*args.shape)
    results = []
    with torch.inference_mode():
        ceilings = card.ceilings()
        for work in works(args, shape, card):
            results.append(measure(work, card))
    add_shares(results, ceilings)
    report(results)
    print("ceilings: " + ", ".join(f"{name} {value:.3g}" for name, value in ceilings.items()))
    Results(args.json, card.describe(), ceilings).put("kernels", {"lines": results})
    return results


if __name__ == "__main__":
    main()
