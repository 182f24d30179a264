"""The compiled CPU kernels against a plain numpy reference, every instruction set forced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention

if extension.missing():
    pytest.fail(f"tests run against an installed package: {extension.missing()}", pytrace=False)

BLOCK = 16
ISAS = extension.runnable_isas()
FLOAT32_TOLERANCE = 2e-6  # absolute, on values of order 1; sums of at most 300 terms
BFLOAT16_TOLERANCE = 1e-2  # relative to 1: one rounding to 8 bits of the float32 result


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

    def run(self, *, isa: str = "", threads: int = 1) -> np.ndarray:
        out = np.full_like(self.q, np.nan)
        plan = PagedAttention(self.starts, list(self.contexts), self.tables)
        plan.run(
            self.q,
            self.k,
            self.v,
            out,
            scale=self.head_dim**-0.5,
            window=self.window,
            soft_cap=self.soft_cap,
            num_threads=threads,
            isa=isa,
        )
        return out

    def reference(self) -> np.ndarray:
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
        return out


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
    "soft cap": Case(counts=(9, 1), contexts=(40, 33), soft_cap=2.0),
    "soft cap and window": Case(counts=(9, 1), contexts=(40, 33), soft_cap=30.0, window=20),
}


def bf16(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(torch.bfloat16)


def test_the_isa_is_one_that_the_features_allow() -> None:
    has = extension.features()
    assert extension.isa() in ("scalar", "avx2", "avx512")
    assert ("scalar", "avx2", "avx512").index(extension.isa()) >= ISAS[::-1].index(ISAS[0])
    assert ISAS[-1] == "scalar"
    assert ("avx2" in ISAS) <= (has["avx2"] and has["fma"] and has["f16c"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_float32_matches_the_reference(name: str, isa: str) -> None:
    case = CASES[name]
    np.testing.assert_allclose(case.run(isa=isa), case.reference(), rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_bfloat16_is_float32_on_rounded_inputs_rounded_once(name: str, isa: str) -> None:
    case = CASES[name]
    q, k, v = bf16(case.q), bf16(case.k), bf16(case.v)
    out = torch.empty_like(q)
    plan = PagedAttention(case.starts, case.contexts, torch.from_numpy(case.tables))
    options = {"scale": case.head_dim**-0.5, "window": case.window, "soft_cap": case.soft_cap}
    plan.run(q, k, v, out, isa=isa, **options)
    exact = torch.empty(q.shape)
    plan.run(q.float(), k.float(), v.float(), exact, isa=isa, **options)
    assert torch.equal(out, exact.to(torch.bfloat16))
    np.testing.assert_allclose(out.float(), case.reference(), rtol=0, atol=2 * BFLOAT16_TOLERANCE)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CASES)
def test_the_number_of_threads_changes_no_bit(name: str, isa: str) -> None:
    case = CASES[name]
    alone = case.run(isa=isa)
    for threads in (2, 3, 7):
        np.testing.assert_array_equal(case.run(isa=isa, threads=threads), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window", [None, 21])
@pytest.mark.parametrize("heads", [2, 4, 6])
def test_chunks_and_batch_mates_change_no_bit(isa: str, window: int | None, heads: int) -> None:
    whole = Case(counts=(61,), contexts=(61,), heads=heads, window=window)
    expected = whole.run(isa=isa)
    for cuts in ((0, 1, 61), (0, 17, 33, 61), (0, 16, 60, 61)):
        for start, end in zip(cuts, cuts[1:], strict=False):
            # The chunk goes between two strangers that use the same cache.
            strangers = PagedAttention(
                [0, 1, 1 + end - start, 3 + end - start],
                [5, end, 40],
                np.repeat(whole.tables, 3, axis=0),
            )
            q = np.concatenate([whole.q[:1], whole.q[start:end], whole.q[:2]])
            out = np.empty_like(q)
            scale = whole.head_dim**-0.5
            strangers.run(q, whole.k, whole.v, out, scale=scale, window=window, isa=isa)
            np.testing.assert_array_equal(out[1:-2], expected[start:end])


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa: str) -> None:
    case = Case(counts=(1, 4), contexts=(100, 30), seed=3)
    case.q *= 1000
    assert np.isfinite(case.run(isa=isa)).all()
    np.testing.assert_allclose(case.run(isa=isa), case.reference(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
def test_a_bad_value_stays_in_its_row(isa: str) -> None:
    """Token 9 holds an infinite value: earlier tokens do not see it, later ones do."""
    case = Case(counts=(20,), contexts=(20,), seed=5)
    case.v[case.tables[0][0], 9, 1, :] = np.inf
    out = case.run(isa=isa)
    assert np.isfinite(out[:9]).all()
    assert np.isfinite(out[:, :2]).all()  # heads 0 and 1 read key/value head 0
    assert not np.isfinite(out[9:, 2:]).any()


def test_concurrent_calls_take_turns() -> None:
    case = CASES["odd lengths"]
    expected = case.run()
    wrong: list[int] = []

    def work() -> None:
        for _ in range(50):
            if not np.array_equal(case.run(threads=2), expected):
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
import numpy as np
from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention
q = np.ones((4, 4, 8), np.float32)
kv = np.ones((2, 16, 4, 8), np.float32)
plan = PagedAttention([0, 4], [4], np.array([[1]], np.int32))
def run():
    out = np.zeros_like(q)
    plan.run(q, kv, kv, out, scale=1.0, num_threads=2)
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
    plan = PagedAttention(starts, contexts, tables)
    out = np.empty_like(case.q)

    def run(**changes: object) -> None:
        arrays = {"q": case.q, "k": case.k, "v": case.v, "out": out} | changes
        plan.run(*arrays.values(), scale=1.0)

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
        (ValueError, "the plan has 3 tokens", lambda: run(q=case.q[:2])),
        (ValueError, "out", lambda: run(out=out[:2])),
        (ValueError, "one dtype", lambda: run(out=out.astype(np.float64))),
        (ValueError, "float32 or bfloat16", lambda: run(q=case.q.astype(np.float16))),
        (ValueError, "outside a cache", lambda: run(k=case.k[:3], v=case.v[:3])),
        (ValueError, "differ", lambda: run(k=case.k[:3])),
        (TypeError, "incompatible function arguments", lambda: run(k=case.k[:, :, :, ::2])),
        (ValueError, "known: ", lambda: plan.run(case.q, case.k, case.v, out, scale=1, isa="mmx")),
    ]:
        with pytest.raises(error, match=message):
            call()
