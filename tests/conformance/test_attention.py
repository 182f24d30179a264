"""Every attention backend of the registry: on a grid of cases it refuses, or it matches the reference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from attention_cases import TOLERANCE, make, make_case, make_tensors
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import BLOCK_SIZE, KV_DTYPE_BYTES, KVSpec
from octavo.kernels.attention.base import EVERYTHING
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.attention.registry import ATTENTION

HEADS = ((4, 4, 16), (8, 2, 32), (6, 1, 64), (3, 3, 80), (14, 2, 128))
"""(heads, kv heads, head dim)."""
WINDOWS = (None, 1, 7, 16, 40)
SOFT_CAPS = (None, 5.0)
BATCHES: dict[str, tuple[tuple[int, int], ...]] = {
    "one-token": ((1, 1),),
    "one-decode": ((1, 33),),
    "whole-prompt": ((21, 21),),
    "block-edges": ((15, 15), (16, 16), (17, 17), (1, 16), (1, 17), (16, 32), (1, 32)),
    "chunks": ((5, 40), (16, 48), (1, 2), (33, 50)),
    "decodes": ((1, 5), (1, 64), (1, 31), (1, 1), (1, 90)),
    "mixed": ((1, 70), (9, 9), (1, 18), (0, 12), (20, 61), (1, 17), (2, 3)),
    "far-apart": ((1, 600), (1, 20), (1, 400), (1, 3)),
}
"""Slices as (count, context length after the step); a count of 0 has no rows and disturbs nobody."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("soft_cap", SOFT_CAPS)
@pytest.mark.parametrize("cache_dtype", KV_DTYPE_BYTES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("backend_name", list(ATTENTION.candidates))
@torch.inference_mode()
def test_refuses_or_matches(
    backend_name: str,
    heads: tuple[int, int, int],
    dtype: str,
    cache_dtype: str,
    soft_cap: float | None,
) -> None:
    candidate = ATTENTION.candidates.load(backend_name)
    for window in WINDOWS:
        case, spec = make_case(heads, dtype, window, soft_cap, cache_dtype)
        reason = candidate.refuses(case)
        if reason is not None:
            assert len(reason) > 10, "a refusal says why"
            continue
        backend, reference = candidate(case), ReferenceAttention(case)
        for name, slices in BATCHES.items():
            batch, num_blocks = make(slices, spec)
            q_THD, cache = make_tensors(case, batch, num_blocks)
            expected_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec))
            out_THD = backend.run(q_THD, cache, backend.plan(batch, 0, spec))
            assert out_THD.dtype == q_THD.dtype
            expected_THD = expected_THD.float()
            error_THD = (out_THD.float() - expected_THD).abs() / expected_THD.abs().clamp(min=1)
            error = error_THD.max().item()
            assert error <= TOLERANCE[dtype], f"{name} window={window}: {error}"


WHOLE = ((1, 1), (21, 21), (16, 16), (64, 64), (130, 130), (65, 65), (3, 3))
"""Prompts that are whole in one step, as those are that look ahead."""


@pytest.mark.parametrize(("window", "ahead"), [(None, EVERYTHING), (9, 8), (65, 64), (1, 0)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("backend_name", list(ATTENTION.candidates))
@torch.inference_mode()
def test_looking_ahead_refuses_or_matches(
    backend_name: str, heads: tuple[int, int, int], dtype: str, window: int | None, ahead: int
) -> None:
    case, spec = make_case(heads, dtype, window, None)
    case, spec = replace(case, ahead=ahead), KVSpec(num_kv_heads=heads[1], head_dim=heads[2])
    candidate = ATTENTION.candidates.load(backend_name)
    if candidate.refuses(case) is not None:
        return
    backend, reference = candidate(case), ReferenceAttention(case)
    batch, num_blocks = make(WHOLE, spec)
    q_THD, cache = make_tensors(case, batch, num_blocks)
    expected_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
    out_THD = backend.run(q_THD, cache, backend.plan(batch, 0, spec)).float()
    error_THD = (out_THD - expected_THD).abs() / expected_THD.abs().clamp(min=1)
    assert error_THD.max() <= TOLERANCE[dtype]


@torch.inference_mode()
def test_looking_ahead_is_the_definition() -> None:
    """Against torch's own attention with no mask, and with a band for one."""
    for window, ahead in ((None, EVERYTHING), (9, 8)):
        case, spec = make_case((4, 4, 16), "float32", window, None)
        case = replace(case, ahead=ahead)
        batch, num_blocks = make(((37, 37),), replace_spec(spec), adjacent=True)
        q_THD, cache = make_tensors(case, batch, num_blocks)
        k_HLD, v_HLD = (
            t.flatten(0, 1)[BLOCK_SIZE : BLOCK_SIZE + 37].transpose(0, 1) for t in cache[:2]
        )
        far_TL = (torch.arange(37).unsqueeze(1) - torch.arange(37)).abs()
        mask_TL = None if window is None else far_TL < window
        expected_HTD = torch.nn.functional.scaled_dot_product_attention(
            q_THD.transpose(0, 1), k_HLD, v_HLD, attn_mask=mask_TL, scale=case.scale
        )
        reference = ReferenceAttention(case)
        out_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec))
        torch.testing.assert_close(out_THD, expected_HTD.transpose(0, 1), atol=2e-6, rtol=1e-5)


def replace_spec(spec: KVSpec) -> KVSpec:
    """The same without a window: what looks ahead keeps all of its prompt."""
    return KVSpec(num_kv_heads=spec.num_kv_heads, head_dim=spec.head_dim)


@pytest.mark.parametrize("backend_name", list(ATTENTION.candidates))
@torch.inference_mode()
def test_adjacent_blocks_and_batch_mates_change_nothing(backend_name: str) -> None:
    case, spec = make_case((8, 2, 32), "float32", None, None)
    candidate = ATTENTION.candidates.load(backend_name)
    if candidate.refuses(case) is not None:
        return
    backend = candidate(case)
    batch, num_blocks = make(BATCHES["mixed"], spec, adjacent=True)
    q_THD, cache = make_tensors(case, batch, num_blocks)
    together_THD = backend.run(q_THD, cache, backend.plan(batch, 0, spec))
    for i, length in enumerate(batch.context_lens):
        start, end = batch.query_starts[i], batch.query_starts[i + 1]
        alone = ForwardBatch(
            token_ids_T=batch.token_ids_T[start:end],
            positions_T=batch.positions_T[start:end],
            query_starts=(0, end - start),
            context_lens=(length,),
            groups=(
                GroupBatch(
                    slots_T=batch.groups[0].slots_T[start:end],
                    block_tables_SB=batch.groups[0].block_tables_SB[i : i + 1],
                ),
            ),
            logits_rows_N=batch.logits_rows_N,
        )
        out_THD = backend.run(q_THD[start:end], cache, backend.plan(alone, 0, spec))
        torch.testing.assert_close(out_THD, together_THD[start:end], atol=2e-6, rtol=0)


@torch.inference_mode()
def test_reference_is_the_definition() -> None:
    """Against torch's own attention, on one whole prompt laid out by hand."""
    case, spec = make_case((4, 2, 16), "float32", None, None)
    batch, num_blocks = make(((37, 37),), spec, adjacent=True)
    q_THD, cache = make_tensors(case, batch, num_blocks)
    k_HLD, v_HLD = (
        t.flatten(0, 1)[BLOCK_SIZE : BLOCK_SIZE + 37].repeat_interleave(2, 1).transpose(0, 1)
        for t in (cache.k, cache.v)
    )
    expected_HTD = torch.nn.functional.scaled_dot_product_attention(
        q_THD.transpose(0, 1), k_HLD, v_HLD, is_causal=True, scale=case.scale
    )
    reference = ReferenceAttention(case)
    out_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec))
    torch.testing.assert_close(out_THD, expected_HTD.transpose(0, 1), atol=2e-6, rtol=1e-5)
