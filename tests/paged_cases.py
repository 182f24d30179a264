"""Steps of paged attention for the compiled kernels, with their answers in float64 and poison around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors, quantize

BLOCK = 16


@dataclass(kw_only=True)
class Case:
    counts: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    window: int | None = None
    ahead: int = 0
    soft_cap: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        width = max(-(-context // BLOCK) for context in self.contexts) + 1
        num_blocks = 1 + width * len(self.contexts)
        ids = random.permutation(np.arange(1, num_blocks))
        self.tables = ids.reshape(len(self.contexts), width).astype(np.int32)
        self.starts = [0, *np.cumsum(self.counts).tolist()]
        shape = (num_blocks, BLOCK, self.kv_heads, self.head_dim)
        self.q = random.standard_normal((self.starts[-1], self.heads, self.head_dim), np.float32)
        self.k = random.standard_normal(shape, np.float32)
        self.v = random.standard_normal(shape, np.float32)
        # Nothing but a sequence's own tokens may be read into its result: the rest is poison.
        written = np.zeros((num_blocks, BLOCK), bool)
        for table, context in zip(self.tables, self.contexts, strict=True):
            for position in range(context):
                written[table[position // BLOCK], position % BLOCK] = True
        self.k[~written] = np.nan
        self.v[~written] = np.nan

    @property
    def cache(self) -> KVTensors:
        return KVTensors(torch.from_numpy(self.k), torch.from_numpy(self.v))

    def plan(self) -> PagedAttention:
        return PagedAttention(self.starts, list(self.contexts), self.tables)

    def run(
        self, q: torch.Tensor | None = None, cache: KVTensors | None = None, **how: Any
    ) -> torch.Tensor:
        """`how`: isa, num_threads. Output in the dtype of the queries."""
        q = torch.from_numpy(self.q) if q is None else q
        out = torch.full_like(q, torch.nan)
        options = {"scale": self.head_dim**-0.5, "window": self.window, "soft_cap": self.soft_cap}
        options["ahead"] = self.ahead
        self.plan().run(q, cache or self.cache, out, **options, **how)
        return out

    def reference(self) -> torch.Tensor:
        """Softmax attention in float64, one row at a time."""
        out = np.zeros(self.q.shape)
        for index, (count, context) in enumerate(zip(self.counts, self.contexts, strict=True)):
            flat = [(self.tables[index][p // BLOCK], p % BLOCK) for p in range(context)]
            keys = np.stack([self.k[at] for at in flat]).astype(np.float64)  # [context, G, D]
            values = np.stack([self.v[at] for at in flat]).astype(np.float64)
            for offset in range(count):
                row = self.starts[index] + offset
                position = context - count + offset
                low = 0 if self.window is None else max(0, position - self.window + 1)
                end = min(position + 1 + self.ahead, context)
                for head in range(self.heads):
                    group = head // (self.heads // self.kv_heads)
                    scores = keys[low:end, group] @ self.q[row, head].astype(np.float64)
                    scores *= self.head_dim**-0.5
                    if self.soft_cap:
                        scores = self.soft_cap * np.tanh(scores / self.soft_cap)
                    weights = np.exp(scores - scores.max())
                    out[row, head] = weights / weights.sum() @ values[low:end, group]
        return torch.from_numpy(out)


def between_strangers(whole: Case, cache: KVTensors, start: int, end: int) -> torch.Tensor:
    """Tokens start .. end of a case of one slice, [tokens, H, D], as a chunk between two slices that use the same cache."""
    q_THD = torch.from_numpy(whole.q)
    count = end - start
    plan = PagedAttention(
        [0, 1, 1 + count, 3 + count], [5, end, 40], np.repeat(whole.tables, 3, axis=0)
    )
    q = torch.cat([q_THD[:1], q_THD[start:end], q_THD[:2]])
    out = torch.empty_like(q)
    plan.run(q, cache, out, scale=whole.head_dim**-0.5, window=whole.window)
    return out[1:-2]


CASES = {
    "one token": Case(counts=(1,), contexts=(1,)),
    "decode": Case(counts=(1, 1, 1), contexts=(16, 17, 255)),
    "odd lengths": Case(counts=(7, 1, 33), contexts=(7, 100, 41)),
    "a chunk in the middle": Case(counts=(19,), contexts=(147,)),
    "an empty slice": Case(counts=(3, 0, 2), contexts=(3, 5, 40)),
    "one head each": Case(counts=(5, 1), contexts=(21, 64), heads=4, kv_heads=4),
    "three to one": Case(counts=(5, 1), contexts=(21, 64), heads=6, kv_heads=2),
    "eight to one": Case(counts=(20, 1), contexts=(20, 70), heads=8, kv_heads=1),
    "many heads": Case(counts=(3,), contexts=(50,), heads=40, kv_heads=1, head_dim=16),
    "head 128": Case(counts=(18, 1), contexts=(18, 300), head_dim=128),
    "head 8": Case(counts=(4, 1), contexts=(30, 9), head_dim=8),
    "head 40": Case(counts=(4, 1), contexts=(30, 9), head_dim=40),
    "head 20, no multiple of 8": Case(counts=(4, 1), contexts=(30, 9), head_dim=20),
    "window 1": Case(counts=(6, 1), contexts=(40, 33), window=1),
    "window 5": Case(counts=(25, 1), contexts=(40, 33), window=5),
    "window 16": Case(counts=(25, 1), contexts=(40, 33), window=16),
    "window 100": Case(counts=(25, 1), contexts=(40, 233), window=100),
    "several stretches": Case(counts=(70, 1, 2), contexts=(200, 333, 129), heads=8),
    "several spans": Case(counts=(1, 5, 1), contexts=(2100, 1030, 1024), head_dim=16),
    "a window over spans": Case(counts=(1, 40), contexts=(2100, 1040), head_dim=16, window=1030),
    "soft cap": Case(counts=(9, 1), contexts=(40, 33), soft_cap=2.0),
    "soft cap and window": Case(counts=(9, 1), contexts=(40, 33), soft_cap=30.0, window=20),
}


def kept_as(case: Case, dtype: torch.dtype) -> KVTensors:
    """The case's cache in another dtype; what was never written stays poison."""
    if dtype is not torch.int8:
        return KVTensors(case.cache.k.to(dtype), case.cache.v.to(dtype))
    kept: dict[str, torch.Tensor] = {}
    for name, values in (("k", case.cache.k), ("v", case.cache.v)):
        integers, scales = quantize(values.flatten(0, 1).nan_to_num(7.0))
        scales[values.flatten(0, 1).isnan().any(-1)] = torch.nan
        kept[name] = integers.view(values.shape)
        kept[f"{name}_scales"] = scales.view(values.shape[:3])
    return KVTensors(**kept)
