"""What is measured, (a) to (g) and more: each part returns plain numbers with units in their names."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from beside import PlainLoop, transformers_rate, vllm_throughput
from card import Card
from ours import Ours, decode_rate

from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.registry import ATTENTION
from octavo.kernels.dispatch import Dispatcher
from octavo.kernels.kv import KVTensors
from octavo.models.facts import read_facts

SHAPES = Path(__file__).resolve().parents[1] / "shapes"


@dataclass(frozen=True)
class Setting:
    """Where, against which ceilings, and whether only to see that all of it runs."""

    card: Card
    ceilings: dict[str, float]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Of the card."""
        return self.card.device

    @property
    def is_dry(self) -> bool:
        """Whether on a CPU."""
        return self.card.is_dry

    @property
    def large(self) -> Path:
        """The 8B shape."""
        return SHAPES / ("tiny" if self.is_dry else "llama-3.1-8b")

    @property
    def small(self) -> Path:
        """The 0.6B shape."""
        return SHAPES / ("tiny" if self.is_dry else "qwen3-0.6b")

    def engine(self, folder: Path, **options: Any) -> Ours:
        """An engine there."""
        base: dict[str, Any] = {"device": self.device.type, "performance_mode": "throughput"}
        if self.is_dry:
            base["kv_cache_memory_bytes"] = 64 << 20
        return Ours(folder, **(base | self.options | options))


def one_stream(setting: Setting, **options: Any) -> dict[str, Any]:
    """(a) Batch 1: tokens per second, and the share of what reading the weights once per token allows."""
    prompt, output = (16, 16) if setting.is_dry else (128, 512)
    ours = setting.engine(
        setting.large, max_num_seqs=4, max_model_len=prompt + output + 32, **options
    )
    ours.run([(prompt, 32)])  # captures and compiles
    ours.run([(prompt, 32)])
    rate = decode_rate(ours.run([(prompt, output)]))
    weights = dict(ours.link.ready.memory)["weights"] if ours.link.ready else 0
    about = ours.about()
    ours.close()
    facts = read_facts(setting.large)
    if not facts.is_tied:
        weights -= facts.vocab_size * facts.hidden_size * 2  # of the table one row is read
    # A copy reads and writes; reading alone is held to the same bytes per second.
    ceiling = setting.ceilings["copy_bytes_per_s"] / weights
    return {
        "tokens_per_s": rate,
        "read_bytes_per_token": weights,
        "share_of_copy_ceiling": rate / ceiling,
        "about": about,
    }


def beside_one_stream(setting: Setting) -> dict[str, Any]:
    """(a) The same by transformers and by a plain loop."""
    prompt, output = (16, 8) if setting.is_dry else (128, 128)
    loop = PlainLoop(setting.large, setting.card, prompt + output)
    plain = loop.rate(prompt, output)
    del loop
    peer = transformers_rate(setting.large, setting.card, prompt=prompt, output=output)
    return {"transformers": peer, "plain_loop": plain}


Work = list[tuple[int, int]]


def public_work(setting: Setting) -> Work:
    """256 sequences of 100 to 1,024 tokens in and out, seed 0."""
    count, low, high = (6, 4, 24) if setting.is_dry else (256, 100, 1024)
    rng = random.Random(0)
    return [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]


def large_work(setting: Setting) -> Work:
    """256 sequences of 1,024 tokens in and 256 out."""
    return [(32, 8)] * 4 if setting.is_dry else [(1024, 256)] * 256


def longest(work: Work) -> int:
    """Of its sequences."""
    return max(map(sum, work))


def public_workload(setting: Setting) -> dict[str, Any]:
    """(b) The public workload at the 0.6B shape: output tokens per second of the whole run."""
    return _throughput(setting, setting.small, public_work(setting))


def large_throughput(setting: Setting) -> dict[str, Any]:
    """(c) 1,024 in, 256 out at the 8B shape."""
    return _throughput(setting, setting.large, large_work(setting))


def vllm_public(setting: Setting) -> dict[str, Any]:
    """(b) The same by vLLM."""
    work = public_work(setting)
    return vllm_throughput(setting.small, work, longest(work))


def vllm_large(setting: Setting) -> dict[str, Any]:
    """(c) The same by vLLM."""
    work = large_work(setting)
    return vllm_throughput(setting.large, work, longest(work))


def _throughput(setting: Setting, folder: Path, work: Work) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    for name, is_ahead in (("one ahead", True), ("one at a time", False)):
        ours = setting.engine(
            folder, max_num_seqs=len(work), max_model_len=longest(work), async_scheduling=is_ahead
        )
        for _ in range(2):  # captures and compiles
            ours.run([(16, 16)] * len(work))
        run = ours.run(work)
        runs[name] = {
            "output_tokens_per_s": run.num_output / run.seconds,
            "total_tokens_per_s": (run.num_output + sum(n for n, _ in work)) / run.seconds,
            "seconds": run.seconds,
            "about": ours.about(),
        }
        ours.close()
    return {"runs": runs}


def idle(setting: Setting) -> dict[str, Any]:
    """The share of decode steps at batch 64 in which the device has nothing to do, by torch's profiler."""
    rows, output = (4, 8) if setting.is_dry else (64, 96)
    ours = setting.engine(setting.large, max_num_seqs=rows, max_model_len=512)
    for _ in range(2):
        ours.run([(16, output)] * rows)
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU if setting.is_dry else kinds.CUDA]) as seen:
        run = ours.run([(16, output)] * rows)
    ours.close()
    wanted = torch.autograd.DeviceType.CPU if setting.is_dry else torch.autograd.DeviceType.CUDA
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type == wanted and event.time_range.end > event.time_range.start
    )
    # The first tenth is the prompts, the last the requests' ends.
    spans = spans[len(spans) // 10 : -len(spans) // 10 or None]
    busy, end = 0.0, spans[0][0]
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    return {
        "idle_share": 1 - busy / (end - spans[0][0]),
        "step_s": run.seconds / output,
        "num_events": len(spans),
    }


def memory(setting: Setting) -> dict[str, Any]:
    """What the plan said and what was taken, after steps of many sizes, prompts and captures."""
    most = 8 if setting.is_dry else 256
    before = 0 if setting.is_dry else torch.cuda.memory_reserved()
    ours = setting.engine(setting.large, max_num_seqs=most, max_model_len=1024)
    for count in (1, 2, 3, most // 4, most // 2, most):
        for _ in range(2):
            ours.run([(32, 12)] * count)
    ours.run([(900, 16)] * (2 if setting.is_dry else 64))
    about = ours.about()
    parts = ("weights", "kv cache", "activations", "graphs")
    planned = sum(about["memory"].get(part, 0) for part in parts)
    taken = 0 if setting.is_dry else torch.cuda.max_memory_reserved() - before
    ours.close()
    return {
        "planned": {part: about["memory"].get(part, 0) for part in parts},
        "planned_bytes": planned,
        "reserved_bytes": taken,
        "graph_bytes": about["graph_bytes"],
        "off": (taken - planned) / planned,
        "start_up": about["start_up"],
    }


def pieces(setting: Setting) -> dict[str, Any]:
    """Mixed steps of few tokens at the 0.6B shape: short prompts beside short outputs, in pieces and eagerly. And captures:
    the longest slice of one, and what all sizes take with nothing else to do.
    """
    count, rows = (6, 4) if setting.is_dry else (512, 64)
    runs: dict[str, Any] = {}
    for name, has_pieces in (("pieces", True), ("eager", False)):
        ours = setting.engine(
            setting.small,
            max_num_seqs=rows,
            max_model_len=128,
            max_num_batched_tokens=64 if setting.is_dry else 256,
        )
        runner: Any = ours.engine.runner
        if not has_pieces and not setting.is_dry:
            runner.graphs._piece_sizes = ()
        slices, begun = [], time.perf_counter()
        while runner.rest():
            slices.append(time.perf_counter() - begun)
            begun = time.perf_counter()
        for _ in range(2):  # captures what comes up
            ours.run([(48, 6)] * count)
        run = ours.run([(48, 6)] * count)
        runs[name] = {
            "seconds": run.seconds,
            "output_tokens_per_s": run.num_output / run.seconds,
            "longest_slice_s": max(slices, default=0.0),
            "all_slices_s": sum(slices),
            "captured": getattr(runner.graphs, "num_captured", 0),
            "about": ours.about(),
        }
        ours.close()
    return {"runs": runs, "speedup": runs["eager"]["seconds"] / runs["pieces"]["seconds"]}


def prefill(setting: Setting) -> dict[str, Any]:
    """(d) One prompt of 8,192 tokens: FLOP of products and attention per second of its one step."""
    count = 64 if setting.is_dry else 8192
    ours = setting.engine(
        setting.large, max_num_seqs=4, max_model_len=count + 8, max_num_batched_tokens=count + 32
    )
    for _ in range(2):
        ours.run([(count, 1)])
    taken = min(ours.run([(count, 1)]).seconds for _ in range(3))
    ours.close()
    facts = read_facts(setting.large)
    table = facts.vocab_size * facts.hidden_size
    parameters = facts.weight_bytes("bfloat16") // 2 - table * (1 if facts.is_tied else 2)
    attention = 2 * facts.num_layers * facts.num_heads * facts.head_dim * count * count
    flop = 2 * parameters * count + attention
    return {
        "seconds": taken,
        "flop_per_s": flop / taken,
        "share_of_product_ceiling": flop / taken / setting.ceilings["bf16_flop_per_s"],
    }


def attention(setting: Setting) -> dict[str, Any]:
    """(e) Decode attention alone, batch 64 at several contexts: bytes of keys and values per second."""
    rows, contexts = (4, (32, 64)) if setting.is_dry else (64, (1024, 4096, 8192))
    dtype = "bfloat16" if setting.device.type == "cuda" else "float32"
    spec = KVSpec(num_kv_heads=8, head_dim=128, dtype=dtype)
    case = AttentionCase(
        device=setting.device.type,
        dtype=dtype,
        cache_dtype=dtype,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        scale=128**-0.5,
    )
    dispatch = Dispatcher()
    dispatch.choose(ATTENTION, case)
    chosen = dispatch.choices[-1]
    backends: dict[str, Any] = {}
    for name in {chosen.winner, *ATTENTION.rivals}:
        candidate = ATTENTION.candidates.load(name)
        reason = candidate.refuses(case)
        if reason is not None:
            backends[name] = {"refused": reason}
            continue
        backends[name] = {
            str(context): _read_rate(setting, candidate(case), spec, rows, context)
            for context in contexts
        }
    return {
        "backend": chosen.winner,
        "why": chosen.refusals,
        "contexts": backends[chosen.winner],
        "backends": backends,
    }


def _read_rate(
    setting: Setting, backend: Any, spec: KVSpec, rows: int, context: int
) -> dict[str, float]:
    batch, cache = _decodes(setting.device, spec, rows, context)
    q = torch.randn(rows, 32, 128, device=setting.device).to(cache.k.dtype)
    plan = backend.plan(batch, 0, spec)
    with torch.inference_mode():
        taken = setting.card.time(lambda: backend.run(q, cache, plan)).median_s
    read = 2 * rows * context * 8 * 128 * cache.k.element_size()
    return {
        "seconds": taken,
        "bytes_per_s": read / taken,
        "share_of_copy_ceiling": read / taken / setting.ceilings["copy_bytes_per_s"],
    }


def _decodes(
    device: torch.device, spec: KVSpec, rows: int, context: int
) -> tuple[ForwardBatch, KVTensors]:
    """A step of one token per sequence over blocks in no order, as a pool has them after a while."""
    width = context // BLOCK_SIZE
    dtype = getattr(torch, spec.dtype)
    shape = (1 + rows * width, BLOCK_SIZE, spec.num_kv_heads, spec.head_dim)
    cache = KVTensors(*(torch.randn(shape, device=device).to(dtype) for _ in range(2)))
    order = torch.randperm(rows * width, generator=torch.Generator().manual_seed(0)) + 1
    tables = order.view(rows, width).to(torch.int32).to(device)
    last = torch.full((rows,), context - 1, dtype=torch.int64, device=device)
    batch = ForwardBatch(
        token_ids_T=torch.zeros_like(last),
        positions_T=last,
        query_starts=tuple(range(rows + 1)),
        context_lens=(context,) * rows,
        groups=(GroupBatch(slots_T=last, block_tables_SB=tables),),
        logits_rows_N=torch.arange(rows, device=device),
    )
    return batch, cache


def fp8(setting: Setting) -> dict[str, Any]:
    """(f) Batch 1 with weights of eight bits."""
    return one_stream(setting, quantization="int8" if setting.is_dry else "fp8")


def first_token(setting: Setting) -> dict[str, Any]:
    """(g) From the start of a process to the first token, once the files are in the page cache (second run of two)."""
    found: dict[str, Any] = {}
    for name, folder in (("0.6b", setting.small), ("8b", setting.large)):
        command = [sys.executable, str(Path(__file__).with_name("first_token.py")), str(folder)]
        command += [setting.device.type]
        runs = []
        for _ in range(2):
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
            if done.returncode:
                found[name] = {"refused": done.stderr[-2000:]}
                break
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        else:
            found[name] = runs[-1]
    return found


class Part(NamedTuple):
    """One part of the benchmark, in a process of its own."""

    run: Callable[[Setting], dict[str, Any]] | str
    """A script of this folder that writes results of its own, or what to call."""
    limit_s: int
    """It is ended then."""


PARTS = {
    "a": Part(one_stream, 180),
    "e": Part(attention, 90),
    "d": Part(prefill, 150),
    "b": Part(public_workload, 240),
    "c": Part(large_throughput, 300),
    "f": Part(fp8, 180),
    "g": Part(first_token, 240),
    "idle": Part(idle, 120),
    "memory": Part(memory, 150),
    "pieces": Part(pieces, 150),
    "a_peers": Part(beside_one_stream, 240),
    "b_vllm": Part(vllm_public, 400),
    "c_vllm": Part(vllm_large, 400),
    "kernels": Part("kernels.py", 300),
    "gemm": Part("gemm.py", 300),
    "sampling": Part("sampling.py", 200),
}
"""In the order in which they are run: what matters most first."""
