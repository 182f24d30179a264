"""Paged attention by Triton against the reference: shapes that do not fit, splits, windows, caps, quantized caches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attention_cases import TOLERANCE, make, make_case, make_tensors
from gpu_cases import DEVICE
from octavo.core.batch import ForwardBatch, GroupBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.attention.base import EVERYTHING, AttentionCase
from octavo.kernels.attention.reference import ReferenceAttention
from octavo.kernels.attention.triton import TritonAttention
from octavo.kernels.kv import KVTensors

Slices = tuple[tuple[int, int], ...]

MIXED: Slices = ((1, 70), (9, 9), (1, 18), (0, 12), (20, 61), (1, 17), (2, 3))
DECODES: Slices = ((1, 5), (1, 64), (1, 31), (1, 1), (1, 90))
FAR: Slices = ((1, 600), (1, 20), (1, 513), (2, 257))
"""Contexts that are split, two of them one token behind a split's end."""
CHUNKS: Slices = ((40, 300), (33, 33))

HEADS = {"mha": (2, 2, 16), "gqa": (8, 2, 32), "odd": (6, 1, 80), "seven": (7, 1, 64)}


def on_device(
    batch: ForwardBatch, q_THD: torch.Tensor, cache: KVTensors
) -> tuple[ForwardBatch, torch.Tensor, KVTensors]:
    groups = tuple(
        GroupBatch(
            slots_T=group.slots_T.to(DEVICE), block_tables_SB=group.block_tables_SB.to(DEVICE)
        )
        for group in batch.groups
    )
    moved = KVTensors(*(None if tensor is None else tensor.to(DEVICE) for tensor in cache))
    return replace(batch, groups=groups), q_THD.to(DEVICE), moved


def check(case: AttentionCase, spec: KVSpec, slices: Slices) -> torch.Tensor:
    batch, num_blocks = make(slices, spec)
    q_THD, cache = make_tensors(case, batch, num_blocks)
    reference = ReferenceAttention(case)
    wanted_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
    batch, q_THD, cache = on_device(batch, q_THD, cache)
    case = replace(case, device=DEVICE)
    assert TritonAttention.refuses(case) is None
    backend = TritonAttention(case)
    out_THD = backend.run(q_THD, cache, backend.plan(batch, 0, spec))
    assert out_THD.dtype == q_THD.dtype
    error_THD = (out_THD.float().cpu() - wanted_THD).abs() / wanted_THD.abs().clamp(min=1)
    assert error_THD.max().item() <= TOLERANCE[case.dtype]
    return out_THD


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", HEADS.values(), ids=list(HEADS))
@torch.inference_mode()
def test_shapes(heads: tuple[int, int, int], dtype: str) -> None:
    case, spec = make_case(heads, dtype, None, None)
    for slices in (MIXED, DECODES):
        check(case, spec, slices)


@pytest.mark.parametrize("slices", [FAR, CHUNKS, ((1, 1),), ((1, 16),)], ids=str)
@torch.inference_mode()
def test_contexts(slices: Slices) -> None:
    case, spec = make_case(HEADS["gqa"], "bfloat16", None, None)
    check(case, spec, slices)


@pytest.mark.parametrize("cache_dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize(("window", "soft_cap"), [(1, None), (40, None), (None, 5.0), (300, 5.0)])
@torch.inference_mode()
def test_windows_caps_and_caches(
    window: int | None, soft_cap: float | None, cache_dtype: str
) -> None:
    case, spec = make_case(HEADS["gqa"], "bfloat16", window, soft_cap, cache_dtype)
    check(case, spec, ((1, 600), (20, 61), (1, 17), (3, 350)))


@pytest.mark.parametrize(("window", "ahead"), [(None, EVERYTHING), (9, 8), (1, 0)])
@torch.inference_mode()
def test_looking_ahead(window: int | None, ahead: int) -> None:
    case, _ = make_case(HEADS["mha"], "float32", window, None)
    whole = ((1, 1), (21, 21), (130, 130), (64, 64))
    check(replace(case, ahead=ahead), KVSpec(num_kv_heads=2, head_dim=16), whole)


@pytest.mark.parametrize("window", [None, 300])
@torch.inference_mode()
def test_a_row_that_must_not_depend_on_its_batch_does_not(window: int | None) -> None:
    """The same bits as a decode alone, in a chunk that begins anywhere, and among others."""
    case, spec = make_case((4, 2, 32), "float16", window, None)
    case = replace(case, device=DEVICE, is_invariant=True)
    length = 1100
    batch, num_blocks = make(((length, length),), KVSpec(num_kv_heads=2, head_dim=32))
    batch, q_THD, cache = on_device(batch, *make_tensors(case, batch, num_blocks))
    backend = TritonAttention(case)

    def run(*slices: tuple[int, int]) -> torch.Tensor:
        step, _ = make(slices, spec)
        tables_SB = batch.groups[0].block_tables_SB.repeat(len(slices), 1)
        group = GroupBatch(slots_T=step.groups[0].slots_T, block_tables_SB=tables_SB)
        q_rows = torch.cat([q_THD[end - count : end] for count, end in slices])
        return backend.run(q_rows, cache, backend.plan(replace(step, groups=(group,)), 0, spec))

    alone_1HD = run((1, length))
    for first in (5, 40):
        assert torch.equal(run((first, length))[-1:], alone_1HD)
    assert torch.equal(run((1, 7), (1, length), (30, 900))[1:2], alone_1HD)
    assert torch.equal(run((33, length - 70))[-1:], run((1, length - 70)))


@torch.inference_mode()
def test_a_plan_with_room_is_filled_again() -> None:
    """What a graph does: the same launch on the same arrays, with other steps in them."""
    case, spec = make_case(HEADS["gqa"], "bfloat16", None, None)
    case = replace(case, device=DEVICE)
    backend, reference = TritonAttention(case), ReferenceAttention(replace(case, device="cpu"))
    room_SB = torch.zeros(4, 40, dtype=torch.int32, device=DEVICE)
    plan = backend.reserve(room_SB, max_len=640, max_tokens=900)
    held = [t.data_ptr() for t in (plan.sent, plan.tables_SB, plan.partials, plan.stats)]
    for lengths in ((600, 1, 17, 257), (3, 90, 2, 64), (300, 300, 1, 299)):
        batch, num_blocks = make(tuple((1, length) for length in lengths), spec)
        q_THD, cache = make_tensors(case, batch, num_blocks)
        wanted_THD = reference.run(q_THD, cache, reference.plan(batch, 0, spec)).float()
        batch, q_THD, cache = on_device(batch, q_THD, cache)
        backend.fill(plan, batch, 0)
        out_THD = backend.run(q_THD, cache, plan).float().cpu()
        error_THD = (out_THD - wanted_THD).abs() / wanted_THD.abs().clamp(min=1)
        assert error_THD.max() <= TOLERANCE[case.dtype]
        assert held == [
            t.data_ptr() for t in (plan.sent, plan.tables_SB, plan.partials, plan.stats)
        ]
    for slices in (((1, 5),) * 3, ((2, 5), (1, 5), (1, 5), (1, 5)), ((1, 650),) * 4):
        with pytest.raises(ValueError, match="does not fit a plan for 4 tokens"):
            backend.fill(plan, on_device(make(slices, spec)[0], q_THD, cache)[0], 0)


def test_refusals() -> None:
    case, _ = make_case(HEADS["gqa"], "bfloat16", None, None)
    case = replace(case, device=DEVICE)
    for wrong, reason in (
        ({"head_dim": 288}, "at most 256 features"),
        ({"num_heads": 130, "num_kv_heads": 2}, "at most 64 query heads"),
        ({"cache_dtype": "float16"}, "int8 or float8_e4m3fn and not float16"),
        ({"dtype": "float64", "cache_dtype": "float64"}, "not float64"),
    ):
        assert reason in (TritonAttention.refuses(replace(case, **wrong)) or "")
