"""Attention through torch's scaled_dot_product_attention: gather the context by slot, then one fused call.

Slices of several tokens run one by one. Slices of one token run together where their lengths are near each other,
padded to the longest and masked. Shape letters in `base.py`; N decodes of one bucket.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import BLOCK_SIZE, KVSpec
from octavo.kernels.attention.base import AttentionCase, context_slots
from octavo.kernels.attention.reference import visible
from octavo.kernels.kv import KVTensors

SMALL_CONTEXT = 256
"""Up to this length decodes are padded together whatever they waste: a call costs more than the padding."""
MIN_FILL = 0.5
"""Above it, a decode joins a bucket only when it fills at least this share of the longest one's length."""


class ChunkPlan(NamedTuple):
    """One slice of several tokens, or one lone decode."""

    start: int
    end: int
    slots: torch.Tensor | slice
    """Where the visible context lies: a slice when its slots are adjacent (then nothing is copied), else int64 [L]."""
    is_causal: bool
    """The slice is the whole context, so that torch's own causal mask is right."""
    mask_QL: torch.Tensor | None


class DecodePlan(NamedTuple):
    """Several slices of one token."""

    rows_N: torch.Tensor
    slots_NL: torch.Tensor
    """Padded with slot 0, which lies in the null block."""
    mask_N11L: torch.Tensor


class SdpaPlan(NamedTuple):
    """A step's work for one KV group."""

    chunks: tuple[ChunkPlan, ...]
    decodes: tuple[DecodePlan, ...]


class TorchSdpa:
    """The portable fast backend."""

    def __init__(self, case: AttentionCase) -> None:
        self.case = case
        self._is_grouped = case.num_heads != case.num_kv_heads

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Refuses a soft cap, which scaled_dot_product_attention has no place for, and a cache in another dtype."""
        if case.is_invariant:
            return "orders sums by the lengths in a batch"
        if case.soft_cap is not None:
            return "scaled_dot_product_attention has no soft cap"
        if case.cache_dtype != case.dtype:
            return f"reads a cache in the queries' dtype and not {case.cache_dtype}"
        return None

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> SdpaPlan:
        """Gather indices and masks. Reads the block tables, so on a GPU nothing waits for it but the gather."""
        tables_SB = batch.groups[group_index].block_tables_SB
        chunks: list[ChunkPlan] = []
        lone: list[int] = []
        for i, length in enumerate(batch.context_lens):
            start, end = batch.query_starts[i], batch.query_starts[i + 1]
            if end - start == 1:
                lone.append(i)
            elif end > start:
                chunks.append(self._plan_chunk(tables_SB[i], start, end, length))
        decodes: list[DecodePlan] = []
        for bucket in self._buckets(lone, batch.context_lens):
            if len(bucket) == 1:
                start, length = batch.query_starts[bucket[0]], batch.context_lens[bucket[0]]
                chunks.append(self._plan_chunk(tables_SB[bucket[0]], start, start + 1, length))
            else:
                decodes.append(self._plan_decodes(bucket, tables_SB, batch))
        return SdpaPlan(tuple(chunks), tuple(decodes))

    def run(
        self,
        q_THD: torch.Tensor,
        cache: KVTensors,
        plan: SdpaPlan,
        /,
    ) -> torch.Tensor:
        """[T, H, D] -> [T, H, D]."""
        out_THD = torch.empty_like(q_THD)
        k_PGD, v_PGD = cache.k.flatten(0, 1), cache.v.flatten(0, 1)
        for chunk in plan.chunks:
            k_LGD, v_LGD = k_PGD[chunk.slots], v_PGD[chunk.slots]
            out_1HQD = F.scaled_dot_product_attention(
                q_THD[chunk.start : chunk.end].transpose(0, 1).unsqueeze(0),
                k_LGD.transpose(0, 1).unsqueeze(0),
                v_LGD.transpose(0, 1).unsqueeze(0),
                attn_mask=chunk.mask_QL,
                is_causal=chunk.is_causal,
                scale=self.case.scale,
                enable_gqa=self._is_grouped,
            )
            out_THD[chunk.start : chunk.end] = out_1HQD[0].transpose(0, 1)
        for decode in plan.decodes:
            out_NH1D = F.scaled_dot_product_attention(
                q_THD[decode.rows_N].unsqueeze(2),
                k_PGD[decode.slots_NL].transpose(1, 2),
                v_PGD[decode.slots_NL].transpose(1, 2),
                attn_mask=decode.mask_N11L,
                scale=self.case.scale,
                enable_gqa=self._is_grouped,
            )
            out_THD[decode.rows_N] = out_NH1D.squeeze(2)
        return out_THD

    def _first_visible(self, position: int) -> int:
        window = self.case.window
        return 0 if window is None else max(0, position - window + 1)

    def _plan_chunk(self, table_B: torch.Tensor, start: int, end: int, length: int) -> ChunkPlan:
        count = end - start
        first = self._first_visible(length - count)
        slots_L = context_slots(table_B, first, length, BLOCK_SIZE)
        # Elsewhere than on the CPU the look at the values would wait for the device.
        slots = _as_slice(slots_L) if self.case.device == "cpu" else slots_L
        window, ahead = self.case.window, self.case.ahead
        sees_all_before = window is None or window >= length
        is_causal = count == length and sees_all_before and ahead == 0
        mask_QL = None
        if count > 1 and not is_causal and not (sees_all_before and ahead >= length):
            queries, keys = range(length - count, length), range(first, length)
            mask_QL = visible(queries, keys, self.case, table_B.device)
        return ChunkPlan(start, end, slots, is_causal and count > 1, mask_QL)

    def _buckets(self, slices: list[int], lengths: tuple[int, ...]) -> list[list[int]]:
        def span(i: int) -> int:
            return lengths[i] - self._first_visible(lengths[i] - 1)

        buckets: list[list[int]] = []
        for i in sorted(slices, key=span, reverse=True):
            longest = span(buckets[-1][0]) if buckets else 0
            if buckets and (longest <= SMALL_CONTEXT or span(i) >= MIN_FILL * longest):
                buckets[-1].append(i)
            else:
                buckets.append([i])
        return buckets

    def _plan_decodes(
        self, bucket: list[int], tables_SB: torch.Tensor, batch: ForwardBatch
    ) -> DecodePlan:
        device = tables_SB.device
        slots = []
        for i in bucket:
            length = batch.context_lens[i]
            first = self._first_visible(length - 1)
            slots.append(context_slots(tables_SB[i], first, length, BLOCK_SIZE))
        slots_NL = torch.nn.utils.rnn.pad_sequence(slots, batch_first=True)
        spans_N1 = torch.tensor([[len(one)] for one in slots], device=device)
        mask_NL = torch.arange(slots_NL.shape[1], device=device) < spans_N1
        rows_N = torch.tensor([batch.query_starts[i] for i in bucket], device=device)
        return DecodePlan(rows_N, slots_NL, mask_NL[:, None, None, :])


def _as_slice(slots_L: torch.Tensor) -> torch.Tensor | slice:
    """The same slots as a slice when they are adjacent, as they are while one sequence fills a fresh pool."""
    first, length = int(slots_L[0]), len(slots_L)
    adjacent = torch.arange(first, first + length)
    return slice(first, first + length) if torch.equal(slots_L, adjacent) else slots_L
