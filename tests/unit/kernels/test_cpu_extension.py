"""The compiled CPU kernels against a plain numpy reference, every instruction set forced."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors, gather
from paged_cases import CASES, Case, between_strangers, kept_as

if extension.missing():
    pytest.fail(f"tests run against an installed package: {extension.missing()}", pytrace=False)

ISAS = extension.runnable_isas()
CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Absolute, against float64 on unrounded standard normal values: the dtype's own rounding of keys and values.
FLOAT32_TOLERANCE = 2e-6
HALF_TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 3e-3}
INT8_TOLERANCE = 5e-2


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
    for cuts in ((0, 1, 161), (0, 17, 33, 161), (0, 16, 60, 64, 130, 160, 161), range(162)):
        for start, end in zip(cuts, cuts[1:], strict=False):
            assert torch.equal(between_strangers(whole, cache, start, end), expected[start:end])


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
