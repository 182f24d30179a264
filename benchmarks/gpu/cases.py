"""The measured cases, (a) to (g): each returns what goes into the results, as plain numbers with units in their names."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from beside import PlainLoop, transformers_rate
from clock import queued_seconds
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

    device: torch.device
    ceilings: dict[str, float]
    is_dry: bool
    options: dict[str, Any] = field(default_factory=dict)

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
    peer = transformers_rate(setting.large, setting.device, prompt=prompt, output=output)
    loop = PlainLoop(setting.large, setting.device, prompt + output)
    return {"transformers": peer, "plain_loop": loop.rate(prompt, output)}


def public_workload(setting: Setting) -> dict[str, Any]:
    """(b) 256 sequences of 100 to 1,024 tokens in and out, seed 0: output tokens per second of the whole run."""
    count, low, high = (6, 4, 24) if setting.is_dry else (256, 100, 1024)
    rng = random.Random(0)
    work = [(rng.randint(low, high), rng.randint(low, high)) for _ in range(count)]
    return _throughput(setting, setting.small, work, 2 * high, {"reached": 22_000})


def large_throughput(setting: Setting) -> dict[str, Any]:
    """(c) 256 sequences of 1,024 tokens in and 256 out."""
    count, prompt, output = (4, 32, 8) if setting.is_dry else (256, 1024, 256)
    return _throughput(setting, setting.large, [(prompt, output)] * count, prompt + output, {})


def _throughput(
    setting: Setting, folder: Path, work: list[tuple[int, int]], length: int, goal: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {"goal": goal}
    for name, is_ahead in (("one_at_a_time", False), ("ahead", True)):
        ours = setting.engine(
            folder, max_num_seqs=len(work), max_model_len=length, async_scheduling=is_ahead
        )
        ours.run([(16, 16)] * len(work))
        ours.run([(16, 16)] * len(work))
        run = ours.run(work)
        found[name] = {
            "output_tokens_per_s": run.num_output / run.seconds,
            "total_tokens_per_s": (run.num_output + sum(n for n, _ in work)) / run.seconds,
            "seconds": run.seconds,
            "about": ours.about(),
        }
        ours.close()
    return found


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
    backend = dispatch.choose(ATTENTION, case)
    found: dict[str, Any] = {"backend": dispatch.choices[-1].winner, "contexts": {}}
    for context in contexts:
        batch, cache = _decodes(setting.device, spec, rows, context)
        q = torch.randn(rows, 32, 128, device=setting.device).to(cache.k.dtype)
        plan = backend.plan(batch, 0, spec)
        with torch.inference_mode():
            taken = queued_seconds(
                lambda q=q, c=cache, p=plan: backend.run(q, c, p), setting.device
            )
        read = 2 * rows * context * 8 * 128 * cache.k.element_size()
        found["contexts"][context] = {
            "seconds": taken,
            "bytes_per_s": read / taken,
            "share_of_copy_ceiling": read / taken / setting.ceilings["copy_bytes_per_s"],
        }
    return found


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


CASES = {
    "a_one_stream": one_stream,
    "a_beside": beside_one_stream,
    "b_public_workload": public_workload,
    "c_large_throughput": large_throughput,
    "d_prefill": prefill,
    "e_attention": attention,
    "f_fp8": fp8,
    "g_first_token": first_token,
}
