"""What an attention backend is. It reads the paged cache; storing keys and values is the op `kv_store`.

Shape letters: T tokens in the step, S slices, H query heads, G kv heads, D head dim, L context, Q rows of a slice.
A layer's cache is a `KVTensors`: k and v [num_blocks, BLOCK_SIZE, G, D]. Block 0 is the null block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from octavo.core.batch import ForwardBatch
from octavo.core.kvspec import KVSpec
from octavo.kernels.kv import KVTensors

PlanT = TypeVar("PlanT")
EVERYTHING = 1 << 29
"""More tokens than any sequence has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCase:
    """What is known of a layer's attention before any step."""

    device: str
    dtype: str
    """Of queries and outputs."""
    cache_dtype: str
    """Of keys and values; those of 8 bits have scales."""
    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    """Factor on q.k, usually head_dim ** -0.5."""
    window: int | None = None
    """Each token sees itself and the `window - 1` tokens before it; None sees all."""
    ahead: int = 0
    """Each token sees so many tokens after it, within what the step holds of its sequence: 0 is causal, `EVERYTHING` is
    attention in both directions."""
    soft_cap: float | None = None
    """Scores become soft_cap * tanh(score / soft_cap) (https://arxiv.org/abs/2408.00118)."""
    is_invariant: bool = False
    """Whether a row must have the same bits whatever its batch mates and chunks are, at the cost of speed where a
    backend would not give that anyway."""


class AttentionBackend(Protocol[PlanT]):
    """Attention of the step's queries over the cache, causal unless the case looks ahead, which already holds the step's keys and values.

    A backend is made for one case: `Backend(case)`. Its class answers `refuses(case)`.
    """

    @staticmethod
    def refuses(case: AttentionCase, /) -> str | None:
        """Why it cannot take the case, or None."""

    def plan(self, batch: ForwardBatch, group_index: int, spec: KVSpec, /) -> PlanT:
        """Whatever `run` needs that is the same for all layers of a KV group; called once per step and group."""

    def run(self, q_THD: torch.Tensor, cache: KVTensors, plan: PlanT, /) -> torch.Tensor:
        """One layer: queries [T, H, D] -> outputs [T, H, D] in the queries' dtype."""


def context_slots(table_B: torch.Tensor, start: int, end: int, block_size: int) -> torch.Tensor:
    """Slots of a sequence's tokens start..end in order: int64 [end - start], from its block table [B]."""
    first = start // block_size
    blocks = table_B[first : -(-end // block_size)].to(torch.int64)
    offsets = torch.arange(block_size, device=table_B.device)
    slots = (blocks.unsqueeze(1) * block_size + offsets).flatten()
    return slots[start - first * block_size : end - first * block_size]
