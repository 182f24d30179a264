"""Attention by Triton kernels: reads the paged cache in place, chunks and decodes in one launch.

The plan cuts a step into items (`work.py`) on the host and sends them in one copy; nothing waits for the device. Shape
letters in `base.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase
from octavo.kernels.attention.work import (
    ITEM_WORDS,
    MERGE_WORDS,
    SPAN,
    Cut,
    Work,
    lay_out,
    lay_out_within,
    max_work,
)
from octavo.kernels.gpu_facts import FP8_CAPABILITY
from octavo.kernels.kv import KVTensors
from octavo.kernels.triton import support

KERNEL_BLOCK_SIZE = 16
"""BLOCK_SIZE of kernels/triton/attention.py."""
MAX_HEAD_DIM = 256
MAX_GROUP = 64
"""Query heads per key/value head: a token's must fit in a tile."""
MAX_PROGRAMS = 4096
"""Of a plan with room, whose every program is started though most may find nothing to do: some thirty per multiprocessor.
Others have a program per item, which the device hands out as places become free."""
HEADER = 4
"""Words before the items of what is sent: how many items, how many merges, and two that align the rest."""
LOG2E = math.log2(math.e)


class Tiling(NamedTuple):
    """Sizes of one compiled variant."""

    rows: int
    keys: int
    warps: int
    stages: int


def tilings(case: AttentionCase) -> tuple[Tiling, Tiling, Tiling]:
    """For steps of slices of few tokens, for mixed ones, and for those of chunks alone.

    A decode fills the smallest tile that matrix units take, because it waits for memory; a chunk the largest that
    registers hold. Mixed steps take a middle one for both. Products of float32 have no matrix unit, and all of both operands
    in registers.
    """
    group = max(16, _power_of_two(case.num_heads // case.num_kv_heads))
    is_wide, is_float = case.head_dim > 128, case.dtype == "float32"
    if is_float:
        few = Tiling(group, 16 if is_wide else 32, 4, 2)
        middle = few if is_wide else Tiling(max(32, group), 32, 8, 2)
        return few, middle, middle
    keys, stages = (32, 2) if is_wide else (64, 3)
    few = Tiling(group, keys, 4, stages)
    # Two softmaxes at once, where each span has its own, or 256 features, are more than four warps hold.
    middle = Tiling(max(64, group), keys, 8 if is_wide or case.is_invariant else 4, stages)
    return few, middle, middle if is_wide else Tiling(128, keys, 8, stages)


@dataclass(slots=True, eq=False)
class TritonPlan:
    """A step's work on the device. With `room`, arrays stay where they are and can be filled again."""

    tiling: Tiling
    sent: torch.Tensor
    """int32: header, items, merges."""
    tables_SB: torch.Tensor
    room: tuple[int, int]
    """Items and merges that fit; the exact numbers of a plan that is used once."""
    partials: torch.Tensor | None
    stats: torch.Tensor | None
    num_partials: int
    has_room: bool = False


class TritonAttention:
    """The kernels for one case; every feature of the case is supported."""

    def __init__(self, case: AttentionCase) -> None:
        # lazy: triton is loaded when a case was taken
        from octavo.kernels.triton import attention

        self.case = case
        self._kernels = attention
        self._group = case.num_heads // case.num_kv_heads
        self._few, self._middle, self._many = tilings(case)
        self._padded = max(16, _power_of_two(case.head_dim))

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses other devices and dtypes, older devices, heads that are too large, and a process without triton."""
        if BLOCK_SIZE != KERNEL_BLOCK_SIZE:
            return f"is written for blocks of {KERNEL_BLOCK_SIZE} tokens and not {BLOCK_SIZE}"
        if case.head_dim > MAX_HEAD_DIM:
            return f"takes heads of at most {MAX_HEAD_DIM} features and not {case.head_dim}"
        if case.num_heads > MAX_GROUP * case.num_kv_heads:
            return f"takes at most {MAX_GROUP} query heads per key/value head"
        if case.cache_dtype not in (case.dtype, "int8", "float8_e4m3fn"):
            return f"reads a cache in the queries' dtype, int8 or float8_e4m3fn and not {case.cache_dtype}"
        is_fp8 = case.cache_dtype == "float8_e4m3fn"
        least = FP8_CAPABILITY if is_fp8 else support.MIN_CAPABILITY
        return support.refusal(case.device, case.dtype, capability=least)

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> TritonPlan:
        """The step's items, on their way to the device."""
        tables_SB = _tables(batch, group_index)
        tiling = self._tiling(batch)
        work = lay_out(batch.query_starts, batch.context_lens, self._cut(tiling))
        sent = _send(_pack(work, len(work.items)), tables_SB.device)
        partials, stats = self._make_partials(work.num_partials, tables_SB.device)
        room = (len(work.items), len(work.merges))
        return TritonPlan(tiling, sent, tables_SB, room, partials, stats, work.num_partials)

    def reserve(
        self,
        tables_SB: torch.Tensor,
        *,
        max_len: int,
        max_tokens: int,
        beside: TritonPlan | None = None,
    ) -> TritonPlan:
        """A plan for any step of one token for each of S sequences, to be filled before each: what a graph captures.

        `tables_SB` is where the tables of those steps will lie; no sequence has more than `max_len` tokens, and all of
        them together at most `max_tokens`, which is what the cache holds. Those that share a prefix may be longer: their
        contexts are split into fewer parts then. `beside`: a plan for more sequences whose steps are others, so that
        both may keep partial results in the same place.
        """
        cut = self._cut(self._single_tiling)
        num_items, num_partials = max_work(len(tables_SB), max_len, max_tokens, cut)
        room = (num_items, len(tables_SB))
        words = HEADER + num_items * ITEM_WORDS + len(tables_SB) * MERGE_WORDS
        sent = torch.zeros(words, dtype=torch.int32, device=tables_SB.device)
        if beside is not None and beside.num_partials >= num_partials > 0:
            partials, stats = beside.partials, beside.stats
        else:
            partials, stats = self._make_partials(num_partials, tables_SB.device)
        return TritonPlan(
            self._single_tiling,
            sent,
            tables_SB,
            room,
            partials,
            stats,
            num_partials,
            has_room=True,
        )

    def fill(self, plan: TritonPlan, batch: ForwardBatch, group_index: int) -> None:
        """Write a step of one token per sequence into a plan from `reserve`; its tables, too, unless they lie there.

        Raises:
            ValueError: the step does not fit.
        """
        cut = self._cut(plan.tiling)
        work = lay_out_within(batch.query_starts, batch.context_lens, cut, plan.room[0])
        tables_SB = _tables(batch, group_index)
        fits = len(work.items) <= plan.room[0] and work.num_partials <= plan.num_partials
        shapes = len(tables_SB), batch.num_tokens, tables_SB.shape[1] <= plan.tables_SB.shape[1]
        if not fits or shapes != (len(plan.tables_SB), len(plan.tables_SB), True):
            raise ValueError(
                f"a step of {len(tables_SB)} slices, {batch.num_tokens} tokens and {len(work.items)} items does not "
                f"fit a plan for {len(plan.tables_SB)} tokens and {plan.room[0]} items."
            )
        packed = _pack(work, plan.room[0])
        plan.sent[: len(packed)].copy_(_pinned(packed, plan.sent.device), non_blocking=True)
        if tables_SB.data_ptr() != plan.tables_SB.data_ptr():
            plan.tables_SB[:, : tables_SB.shape[1]].copy_(tables_SB, non_blocking=True)

    def run(self, q_THD: torch.Tensor, cache: KVTensors, plan: TritonPlan, /) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        case, tiling = self.case, plan.tiling
        q_THD = q_THD.contiguous()
        out_THD = torch.empty_like(q_THD)
        num_items, num_merges = plan.room
        if num_items == 0:
            return out_THD
        items_at, merges_at = HEADER, HEADER + num_items * ITEM_WORDS
        # Steps without partial results name a place of the same type, so that they run the same compiled kernel.
        nowhere = plan.sent.view(torch.float32)
        partials = nowhere if plan.partials is None else plan.partials
        stats = nowhere if plan.stats is None else plan.stats
        scale = case.scale * LOG2E if case.soft_cap is None else case.scale / case.soft_cap
        programs = num_items * case.num_kv_heads
        self._kernels.attend[(min(programs, MAX_PROGRAMS) if plan.has_room else programs,)](
            q_THD,
            cache.k,
            cache.v,
            cache.k if cache.k_scales is None else cache.k_scales,
            cache.v if cache.v_scales is None else cache.v_scales,
            out_THD,
            plan.tables_SB,
            plan.sent,
            plan.sent[items_at:],
            partials,
            stats,
            plan.tables_SB.stride(0),
            plan.num_partials,
            scale,
            (case.soft_cap or 0.0) * LOG2E,
            HEADS=case.num_kv_heads,
            GROUP=self._group,
            DIM=case.head_dim,
            PADDED=self._padded,
            M=tiling.rows,
            N=tiling.keys,
            SPAN=SPAN if case.is_invariant else 0,
            WINDOW=case.window or 0,
            AHEAD=case.ahead,
            HAS_CAP=case.soft_cap is not None,
            HAS_SCALES=cache.k_scales is not None,
            PRECISION="ieee" if case.dtype == "float32" else "tf32",
            STAGES=tiling.stages,
            num_warps=tiling.warps,
        )
        if plan.partials is not None and num_merges:
            self._kernels.merge[(num_merges * case.num_kv_heads,)](
                partials,
                stats,
                out_THD,
                plan.sent,
                plan.sent[merges_at:],
                plan.num_partials,
                HEADS=case.num_kv_heads,
                GROUP=self._group,
                DIM=case.head_dim,
                PADDED=self._padded,
                M=_power_of_two(self._group),
                UNROLL=8 if self._group * case.head_dim <= 1024 else 2,
                num_warps=4,
            )
        return out_THD

    @property
    def _single_tiling(self) -> Tiling:
        """Of steps of one token per sequence."""
        return self._middle if self.case.is_invariant else self._few

    def _tiling(self, batch: ForwardBatch) -> Tiling:
        """By the longest and the shortest slice; always the same one where rows must not depend on their batch."""
        if self.case.is_invariant:
            return self._middle
        few = self._few.rows // self._group
        starts = batch.query_starts
        counts = [starts[i + 1] - starts[i] for i in range(batch.num_slices)]
        if max(counts) <= few:
            return self._few
        return self._middle if min(counts) <= few else self._many

    def _cut(self, tiling: Tiling) -> Cut:
        split = SPAN if self.case.is_invariant else 0
        case = self.case
        return Cut(tiling.rows // self._group, self._group, case.window, case.ahead, split)

    def _make_partials(
        self, num_partials: int, device: torch.device
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        if num_partials == 0:
            return None, None
        heads, dim = self.case.num_kv_heads, self.case.head_dim
        partials = torch.empty(heads, num_partials, dim, dtype=torch.float32, device=device)
        return partials, torch.empty(heads, num_partials, 2, dtype=torch.float32, device=device)


def _tables(batch: ForwardBatch, group_index: int) -> torch.Tensor:
    """int32 [S, B], whose rows are adjacent numbers."""
    tables_SB = batch.groups[group_index].block_tables_SB
    return tables_SB if tables_SB.stride(1) == 1 else tables_SB.contiguous()


def _pack(work: Work, room: int) -> torch.Tensor:
    """Header, items (with room for so many) and merges as int32."""
    num_items, num_merges = len(work.items), len(work.merges)
    merges_at = HEADER + room * ITEM_WORDS
    packed = np.zeros(merges_at + num_merges * MERGE_WORDS, np.int32)
    packed[:2] = num_items, num_merges
    packed[HEADER : HEADER + num_items * ITEM_WORDS] = work.items.ravel()
    packed[merges_at:] = work.merges.ravel()
    return torch.from_numpy(packed)


def _pinned(packed: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Where a copy to the device need not wait; torch keeps the memory until the copy was made."""
    return packed if device.type == "cpu" else packed.pin_memory()


def _send(packed: torch.Tensor, device: torch.device) -> torch.Tensor:
    return _pinned(packed, device).to(device, non_blocking=True)


def _power_of_two(value: int) -> int:
    """The smallest that is no smaller."""
    return 1 << max(0, value - 1).bit_length()
