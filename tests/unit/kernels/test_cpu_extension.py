"""The compiled CPU kernels against a plain numpy reference, every instruction set forced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors, gather, quantize

if extension.missing():
    pytest.fail(f"tests run against an installed package: {extension.missing()}", pytrace=False)

BLOCK = 16
ISAS = extension.runnable_isas()
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Absolute, against float64 on unrounded standard normal values: the dtype's own rounding of keys and values.
FLOAT32_TOLERANCE = 2e-6
HALF_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
INT8_TOLERANCE = 5e-2


@dataclass(kw_only=True)
class Case:
    counts: tuple[int, ...]
    contexts: tuple[int, ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    window: int | None = None
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
                for head in range(self.heads):
                    group = head // (self.heads // self.kv_heads)
                    scores = keys[low : position + 1, group] @ self.q[row, head].astype(np.float64)
                    scores *= self.head_dim**-0.5
                    if self.soft_cap:
                        scores = self.soft_cap * np.tanh(scores / self.soft_cap)
                    weights = np.exp(scores - scores.max())
                    out[row, head] = weights / weights.sum() @ values[low : position + 1, group]
        return torch.from_numpy(out)


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


def test_the_isa_is_one_that_the_features_allow() -> None:
    has = extension.features()
    assert extension.isa() in ("scalar", "avx2", "avx512")
    assert ("scalar", "avx2", "avx512").index(extension.isa()) >= ISAS[::-1].index(ISAS[0])
    assert ISAS[-1] == "scalar"
    assert ("avx2" in ISAS) <= (has["avx2"] and has["fma"] and has["f16c"])


def within(out: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", CASES)
def test_float32_matches_the_definition(name: str) -> None:
    case = CASES[name]
    within(case.run(), case.reference(), FLOAT32_TOLERANCE)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_is_float32_on_rounded_inputs_rounded_once(
    name: str, dtype: torch.dtype
) -> None:
    case = CASES[name]
    q, cache = torch.from_numpy(case.q).to(dtype), kept_as(case, dtype)
    exact = case.run(q.float(), KVTensors(cache.k.float(), cache.v.float()))
    assert torch.equal(case.run(q, cache), exact.to(dtype))
    assert torch.equal(case.run(q.float(), cache), exact)
    within(exact, case.reference(), HALF_TOLERANCE[dtype])


@pytest.mark.parametrize("name", CASES)
def test_int8_is_float32_on_what_it_stands_for(name: str) -> None:
    case = CASES[name]
    cache = kept_as(case, torch.int8)
    k, v = (
        gather(values, scales, slice(None)).view(case.k.shape)
        for values, scales in ((cache.k, cache.k_scales), (cache.v, cache.v_scales))
    )
    within(case.run(cache=cache), case.run(cache=KVTensors(k, v)).double(), FLOAT32_TOLERANCE)
    within(case.run(cache=cache), case.reference(), INT8_TOLERANCE)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_instruction_sets_and_threads_change_no_bit(name: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    cache = kept_as(case, dtype)
    expected = case.run(cache=cache, isa="scalar")
    for isa in ISAS:
        for threads in (1, 2, 3, 40):
            assert torch.equal(case.run(cache=cache, isa=isa, num_threads=threads), expected)


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
@pytest.mark.parametrize("window", [None, 21, 90])
@pytest.mark.parametrize("heads", [2, 4, 6, 14])
def test_chunks_and_batch_mates_change_no_bit(
    window: int | None, heads: int, dtype: torch.dtype
) -> None:
    whole = Case(counts=(161,), contexts=(161,), heads=heads, window=window, head_dim=24)
    cache = kept_as(whole, dtype)
    expected = whole.run(cache=cache, isa="scalar")
    q_THD = torch.from_numpy(whole.q)
    for cuts in ((0, 1, 161), (0, 17, 33, 161), (0, 16, 60, 64, 130, 160, 161), range(162)):
        for start, end in zip(cuts, cuts[1:], strict=False):
            # The chunk goes between two strangers that use the same cache.
            strangers = PagedAttention(
                [0, 1, 1 + end - start, 3 + end - start],
                [5, end, 40],
                np.repeat(whole.tables, 3, axis=0),
            )
            q = torch.cat([q_THD[:1], q_THD[start:end], q_THD[:2]])
            out = torch.empty_like(q)
            strangers.run(q, cache, out, scale=whole.head_dim**-0.5, window=window)
            assert torch.equal(out[1:-2], expected[start:end])


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa: str) -> None:
    case = Case(counts=(1, 4), contexts=(100, 30), seed=3)
    case.q *= 1000
    assert case.run(isa=isa).isfinite().all()
    within(case.run(isa=isa), case.reference(), 1e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_a_bad_value_stays_in_its_row(isa: str) -> None:
    """Token 9 holds an infinite value: earlier tokens do not see it, later ones do."""
    case = Case(counts=(20,), contexts=(20,), seed=5)
    case.v[case.tables[0][0], 9, 1, :] = np.inf
    out = case.run(isa=isa)
    assert out[:9].isfinite().all()
    assert out[:, :2].isfinite().all()  # heads 0 and 1 read key/value head 0
    assert not out[9:, 2:].isfinite().any()


def test_concurrent_calls_take_turns() -> None:
    case = CASES["odd lengths"]
    expected = case.run()
    wrong: list[int] = []

    def work() -> None:
        for _ in range(50):
            if not torch.equal(case.run(num_threads=2), expected):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_has_a_pool_of_its_own() -> None:
    script = """
import os
import torch
from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors
q = torch.ones(4, 4, 8)
kv = torch.ones(2, 16, 4, 8)
plan = PagedAttention([0, 4], [4], torch.tensor([[1]], dtype=torch.int32))
def run():
    out = torch.zeros_like(q)
    plan.run(q, KVTensors(kv, kv), out, scale=1.0, num_threads=2)
    assert (out == 1).all()
run()
child = os.fork()
run()
if not child:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)


def test_what_does_not_fit_is_refused() -> None:
    case = CASES["decode"]
    tables, starts, contexts = case.tables, case.starts, list(case.contexts)
    plan, q, (k, v, _, _) = case.plan(), torch.from_numpy(case.q), case.cache
    out = torch.empty_like(q)
    int8 = kept_as(case, torch.int8)

    def run(q: torch.Tensor = q, cache: KVTensors = case.cache, out: torch.Tensor = out) -> None:
        plan.run(q, cache, out, scale=1.0)

    for error, message, call in [
        (ValueError, "query_starts", lambda: PagedAttention([0, 1], contexts, tables)),
        (ValueError, "query_starts", lambda: PagedAttention([1, 1, 2, 3], contexts, tables)),
        (ValueError, "go down", lambda: PagedAttention([0, 2, 1, 3], contexts, tables)),
        (ValueError, "less than its", lambda: PagedAttention(starts, [16, 0, 255], tables)),
        (ValueError, "more blocks", lambda: PagedAttention(starts, [16, 17, 999], tables)),
        (ValueError, "negative", lambda: PagedAttention(starts, contexts, tables - 50)),
        (
            TypeError,
            "incompatible function arguments",
            lambda: PagedAttention(starts, contexts, tables.astype(np.int64)),
        ),
        (ValueError, "the plan has 3", lambda: run(q=q[:2], out=out[:2])),
        (ValueError, "out: expected", lambda: run(out=out[:2])),
        (ValueError, "out: expected", lambda: run(out=out.double())),
        (ValueError, "no attention of torch.float64", lambda: run(q=q.double())),
        (ValueError, "no attention of torch.int8", lambda: run(q=q.to(torch.int8))),
        (ValueError, "over a cache of torch.int32", lambda: run(cache=KVTensors(k.int(), v.int()))),
        (ValueError, "outside a cache", lambda: run(cache=KVTensors(k[:3], v[:3]))),
        (ValueError, "v_cache: expected", lambda: run(cache=KVTensors(k, v[:3]))),
        (ValueError, "v_cache: expected", lambda: run(cache=KVTensors(k, v.half()))),
        (ValueError, "contiguous", lambda: run(cache=KVTensors(k[..., ::2], v[..., ::2]))),
        (ValueError, "no multiple", lambda: run(q=q[:, :3].clone(), out=out[:, :3].clone())),
        (ValueError, "has k_scales", lambda: run(cache=KVTensors(int8.k, int8.v))),
        (
            ValueError,
            "k_scales: expected",
            lambda: run(cache=int8._replace(k_scales=torch.ones(3))),
        ),
        (ValueError, "known: ", lambda: plan.run(q, case.cache, out, scale=1, isa="mmx")),
    ]:
        with pytest.raises(error, match=message):
            call()
