"""Attention by products of bfloat16: one order of arithmetic however rows are cut, and no more rounding than is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.kernels.cpu import extension
from octavo.kernels.cpu.attention import PagedAttention
from octavo.kernels.kv import KVTensors
from paged_cases import BLOCK, Case, between_strangers, kept_as

pytestmark = pytest.mark.usefixtures("rounded_products")

STRETCH, SPAN = 64, 1024
ISA = "avx512_bf16"
EVERYTHING = 1 << 29
# Against the same roundings in float64. A weight close to the middle between two bfloat16 may fall to the other side.
LARGEST_ERROR, RMS_ERROR = 5e-4, 1e-5
# Against float64 on the rounded queries, keys and values: what rounding the weights costs, of standard normal values.
LARGEST_ROUNDING, RMS_ROUNDING = 5e-3, 6e-4

ROUNDED = {
    "one token": Case(counts=(1,), contexts=(1,)),
    "decode": Case(counts=(1, 1, 1), contexts=(16, 17, 255)),
    "odd lengths": Case(counts=(7, 1, 33), contexts=(7, 100, 41)),
    "a chunk in the middle": Case(counts=(19,), contexts=(147,)),
    "an empty slice": Case(counts=(3, 0, 2), contexts=(3, 5, 40)),
    "one head each": Case(counts=(5, 1), contexts=(21, 64), heads=4, kv_heads=4),
    "three to one": Case(counts=(5, 1), contexts=(21, 65), heads=6, kv_heads=2, head_dim=96),
    "four to one": Case(counts=(5, 1), contexts=(21, 65), heads=8, kv_heads=2, head_dim=128),
    "eight to one": Case(counts=(20, 1), contexts=(20, 70), heads=8, kv_heads=1),
    "many heads": Case(counts=(3,), contexts=(50,), heads=40, kv_heads=1, head_dim=32),
    "head 160": Case(counts=(18, 1), contexts=(18, 300), head_dim=160),
    "head 256": Case(counts=(18, 1), contexts=(18, 70), head_dim=256),
    "window 1": Case(counts=(6, 1, 1), contexts=(40, 33, 34), window=1),
    "window 2": Case(counts=(6, 1, 1), contexts=(40, 33, 34), window=2),
    "window 5": Case(counts=(25, 1, 1), contexts=(40, 33, 34), window=5),
    "window 100": Case(counts=(25, 1), contexts=(40, 233), window=100),
    "several stretches": Case(counts=(70, 1, 2), contexts=(200, 333, 129), heads=8),
    "several spans": Case(counts=(1, 5, 1), contexts=(2101, 1030, 1024), head_dim=32),
    "a window over spans": Case(counts=(1, 40), contexts=(2100, 1041), head_dim=32, window=1031),
    "soft cap": Case(counts=(9, 1), contexts=(40, 33), soft_cap=2.0),
    "soft cap and window": Case(counts=(9, 1), contexts=(40, 33), soft_cap=30.0, window=21),
    "both ways": Case(counts=(21, 130, 1), contexts=(21, 130, 1), ahead=EVERYTHING),
    "both ways in a window": Case(counts=(70, 65), contexts=(70, 65), ahead=6, window=8),
}


def narrow(values: np.ndarray) -> np.ndarray:
    """To the nearest bfloat16, in float64."""
    return torch.from_numpy(values).to(torch.bfloat16).double().numpy()


def softmax_by_stretches(
    scores: np.ndarray, values: np.ndarray, low: int, soft_cap: float | None
) -> np.ndarray:
    """What attention.h states of one row that sees keys from `low` on, with sums in float64."""
    if soft_cap:
        scores = soft_cap * np.tanh(scores / soft_cap)
    end = low + len(scores)
    spans = []
    for begin in range(low // SPAN * SPAN, end, SPAN):
        acc, total, top = np.zeros(values.shape[1]), 0.0, -np.inf
        for base in range(begin, min(begin + SPAN, end), STRETCH):
            here = slice(max(base - low, 0), max(base + STRETCH - low, 0))
            if not len(scores[here]):
                continue
            new_top = max(top, scores[here].max())
            weights = np.exp(scores[here] - new_top)
            factor = np.exp(top - new_top)
            acc = acc * factor + narrow(weights.astype(np.float32)) @ values[here]
            total, top = total * factor + weights.sum(), new_top
        spans.append((acc, total, top))
    highest = max(top for _, _, top in spans)
    folded = sum(acc * np.exp(top - highest) for acc, _, top in spans)
    return np.asarray(folded / sum(total * np.exp(top - highest) for _, total, top in spans))


def emulated(case: Case) -> torch.Tensor:
    """Rounded queries, keys and values; weights rounded before they meet the values and not where they are summed."""
    q, k, v = narrow(case.q), narrow(case.k), narrow(case.v)
    out = np.zeros(case.q.shape)
    for index, (count, context) in enumerate(zip(case.counts, case.contexts, strict=True)):
        at = [(case.tables[index][p // BLOCK], p % BLOCK) for p in range(context)]
        keys, values = (np.stack([cache[place] for place in at]) for cache in (k, v))
        for offset in range(count):
            row, position = case.starts[index] + offset, context - count + offset
            low = 0 if case.window is None else max(0, position - case.window + 1)
            seen = slice(low, min(position + 1 + case.ahead, context))
            for head in range(case.heads):
                group = head // (case.heads // case.kv_heads)
                scores = keys[seen, group] @ q[row, head] * case.head_dim**-0.5
                out[row, head] = softmax_by_stretches(
                    scores, values[seen, group], low, case.soft_cap
                )
    return torch.from_numpy(out)


def on_rounded_inputs(case: Case) -> torch.Tensor:
    """The definition in float64, of the rounded queries, keys and values."""
    exact = Case(**{name: getattr(case, name) for name in case.__dataclass_fields__})
    exact.q, exact.k, exact.v = narrow(case.q), narrow(case.k), narrow(case.v)
    return exact.reference()


def rms(error: torch.Tensor) -> float:
    return error.square().mean().sqrt().item()


@pytest.mark.parametrize("name", ROUNDED)
def test_queries_and_weights_are_rounded_and_sums_are_not(name: str) -> None:
    case = ROUNDED[name]
    out = case.run(cache=kept_as(case, torch.bfloat16)).double()
    error = out - emulated(case)
    assert error.abs().max() <= LARGEST_ERROR and rms(error) <= RMS_ERROR
    rounding = out - on_rounded_inputs(case)
    assert rounding.abs().max() <= LARGEST_ROUNDING and rms(rounding) <= RMS_ROUNDING


@pytest.mark.parametrize("name", ROUNDED)
def test_threads_and_types_of_queries_change_no_bit(name: str) -> None:
    case = ROUNDED[name]
    cache, q = kept_as(case, torch.bfloat16), torch.from_numpy(case.q).bfloat16()
    expected = case.run(cache=cache)
    for threads in (2, 3, 40):
        assert torch.equal(case.run(cache=cache, num_threads=threads), expected)
    # float16 holds what float32 and bfloat16 hold of these, apart from the smallest.
    assert torch.equal(case.run(q.float(), cache), expected)
    assert torch.equal(case.run(q, cache), expected.bfloat16())
    assert torch.equal(case.run(q.half(), cache), case.run(q.half().float(), cache).half())


def alone(case: Case, cache: KVTensors, row: int, position: int, threads: int) -> torch.Tensor:
    """One row of the first slice, as a step of its own."""
    q = torch.from_numpy(case.q)[row : row + 1]
    out = torch.empty_like(q)
    plan = PagedAttention([0, 1], [position + 1], case.tables[:1])
    plan.run(q, cache, out, scale=case.head_dim**-0.5, window=case.window, num_threads=threads)
    return out[0]


@pytest.mark.parametrize("window", [None, 1, 2, 20, 21, 90])
@pytest.mark.parametrize("heads", [2, 4, 6, 8, 14])
@pytest.mark.parametrize("head_dim", [32, 96, 128])
def test_chunks_decodes_and_batch_mates_change_no_bit(
    head_dim: int, heads: int, window: int | None
) -> None:
    whole = Case(counts=(161,), contexts=(161,), heads=heads, window=window, head_dim=head_dim)
    cache = kept_as(whole, torch.bfloat16)
    expected = whole.run(cache=cache)
    for cuts in ((0, 1, 161), (0, 17, 33, 161), (0, 16, 61, 64, 127, 160, 161), range(162)):
        for start, end in zip(cuts, cuts[1:], strict=False):
            assert torch.equal(between_strangers(whole, cache, start, end), expected[start:end])


@pytest.mark.parametrize("window", [None, 1035])
def test_a_decode_over_spans_has_the_bits_of_its_chunk(window: int | None) -> None:
    case = Case(counts=(70,), contexts=(2110,), heads=4, kv_heads=2, head_dim=64, window=window)
    cache = kept_as(case, torch.bfloat16)
    expected = case.run(cache=cache, num_threads=2)
    for row in (0, 7, 8, 69):
        for threads in (1, 2, 5):
            got = alone(case, cache, row, 2040 + row, threads)
            assert torch.equal(got, expected[row]), (row, threads)


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("at", [8, 9, 63, 64])
def test_what_lies_beside_a_rows_keys_may_be_anything(poison: float, at: int) -> None:
    """A bad token, the odd or the even of its pair, is in no row that does not see it: not before it, not past its window."""
    window = 5
    case = Case(counts=(80,), contexts=(80,), heads=4, kv_heads=2, window=window, seed=5)
    clean = case.run(cache=kept_as(case, torch.bfloat16))
    case.v[case.tables[0][at // BLOCK], at % BLOCK] = poison
    cache = kept_as(case, torch.bfloat16)
    out = case.run(cache=cache)
    sees = torch.tensor([at <= row < at + window for row in range(80)])
    assert not out[sees].isfinite().any()
    assert torch.equal(out[~sees], clean[~sees])
    for row in range(80):
        assert torch.equal(alone(case, cache, row, row, 1), clean[row]) != bool(sees[row])


def test_other_caches_and_head_sizes_are_rounded_by_nobody() -> None:
    for head_dim in (24, 40, 48, 80):
        case = Case(counts=(5, 1), contexts=(21, 64), head_dim=head_dim)
        cache = kept_as(case, torch.bfloat16)
        assert torch.equal(case.run(cache=cache), case.run(cache=cache, isa="scalar"))
    case = Case(counts=(5, 1), contexts=(21, 64), head_dim=64)
    for dtype in (torch.float32, torch.float16, torch.int8):
        cache = kept_as(case, dtype)
        assert torch.equal(case.run(cache=cache), case.run(cache=cache, isa="scalar"))
    cache = kept_as(case, torch.bfloat16)
    assert not torch.equal(case.run(cache=cache), case.run(cache=cache, isa="scalar"))
    extension.round_products(False)
    assert torch.equal(case.run(cache=cache), case.run(cache=cache, isa="scalar"))


def test_large_scores_do_not_overflow() -> None:
    case = Case(counts=(1, 4), contexts=(100, 30), seed=3)
    case.q *= 1000
    out = case.run(cache=kept_as(case, torch.bfloat16))
    assert out.isfinite().all()
